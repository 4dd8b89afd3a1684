"""aTLAS on small networks: addition, negation, budgets, blocks, selection."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from consilience.errors import RequestError, WorkError
from consilience.tuning.atlas import atlas
from consilience.tuning.learning import Learned
from tests.tuning.tasks import Tasks


@pytest.fixture(scope="module")
def tasks() -> Tasks:
    return Tasks()


def run(tasks: Tasks, **options: Any) -> Learned:
    given: dict[str, Any] = {"steps": 60, "learning_rate": 0.05, **options}
    return atlas(tasks.base, tasks.experts, tasks.models, tasks.examples, **given)


@pytest.mark.parametrize("options", [{}, {"groups": 3}, {"granularity": "model"}, {"penalty": 1}])
def test_addition_beats_the_base(tasks: Tasks, options: dict[str, Any]) -> None:
    found = run(tasks, **options)
    assert found.trace[-1]["loss"] < found.trace[1]["loss"]
    assert tasks.mean_accuracy(found.state()) > tasks.mean_accuracy(tasks.base) + 0.1
    accuracy = {task: tasks.accuracy(found.state(), task) for task in tasks.models}
    assert found.trace[-1]["accuracy"] == pytest.approx(accuracy, abs=1e-6)


def test_weight_matrices_only(tasks: Tasks) -> None:
    found = run(tasks, matrices=True, steps=5)
    assert found.composition.tensors == ("0.weight", "2.weight")
    assert torch.equal(found.state()["0.bias"], tasks.base["0.bias"])


def test_validation_keeps_the_best_or_the_base(tasks: Tasks) -> None:
    found = run(tasks, validation=tasks.examples, every=10)
    best = max(found.trace, key=lambda entry: entry["score"])
    mean = sum(best["accuracy"].values()) / 2
    assert tasks.mean_accuracy(found.state()) == pytest.approx(mean, abs=1e-6)
    predicted = {}
    for task, model in tasks.models.items():
        (batch,) = model.batches(tasks.examples[task], 1000)
        labels = model.logits(batch, tasks.base).argmax(dim=1).tolist()
        predicted[task] = [(x, y) for (x, _), y in zip(tasks.examples[task], labels, strict=True)]
    kept = run(tasks, validation=predicted, every=10)  # the base is perfect on these
    assert not kept.values.any() and "the base is returned" in kept.notices[-1]


def test_negation_keeps_the_control(tasks: Tasks) -> None:
    options: dict[str, Any] = {"validation": tasks.examples, "every": 2, "steps": 40}
    found = run(tasks, forget=["red"], **options)
    state = found.state()
    assert tasks.accuracy(state, "red") < tasks.accuracy(tasks.base, "red")
    assert tasks.accuracy(state, "blue") >= 0.95 * tasks.accuracy(tasks.base, "blue")


def test_a_budget_chooses_task_vectors_by_block(tasks: Tasks) -> None:
    found = run(tasks, budget=1)
    assert found.facts["learnt"] == found.composition.shape[1]
    used = (found.values != 0).sum(dim=0)
    assert used.tolist() == [1] * found.composition.shape[1]
    drawn = run(tasks, budget=1, choice="random", steps=3)
    assert (drawn.values != 0).sum(dim=0).tolist() == used.tolist()
    assert tasks.mean_accuracy(found.state()) > tasks.mean_accuracy(tasks.base)


def test_a_new_task_is_composed_of_others_task_vectors(tasks: Tasks) -> None:
    found = atlas(
        tasks.base,
        {"first": tasks.experts["red"], "second": tasks.experts["blue"]},
        {"red": tasks.models["red"]},
        {"red": tasks.examples["red"][:12]},
        validation={"red": tasks.examples["red"][12:24]},
        steps=40,
        learning_rate=0.05,
    )
    assert tasks.accuracy(found.state(), "red") > tasks.accuracy(tasks.base, "red")


def test_wrong_requests_are_reported_together(tasks: Tasks) -> None:
    with pytest.raises(RequestError) as caught:
        run(tasks, forget=["red", "green", "blue"], budget=5, steps=0, validation={"red": []})
    for part in ("'green' is no task", "all tasks are to be forgotten", "budget 5", "steps 0", "validation has"):
        assert part in str(caught.value)


def test_nan_stops_the_work(tasks: Tasks) -> None:
    broken = {task: [(x * float("nan"), y) for x, y in found] for task, found in tasks.examples.items()}
    with pytest.raises(WorkError, match="the loss is nan"):
        atlas(tasks.base, tasks.experts, tasks.models, broken, steps=2)
