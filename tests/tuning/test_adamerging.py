"""AdaMerging on small networks: descent, clamp, guard, labels, resuming, errors."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from consilience.core.jobs import Job
from consilience.errors import CancelledError, RequestError, WorkError
from consilience.merging.native import parse_native
from consilience.tuning.adamerging import adamerging
from consilience.tuning.learning import Learned, shuffled_batch
from tests.tuning.tasks import Tasks


@pytest.fixture(scope="module")
def tasks() -> Tasks:
    return Tasks()


def run(tasks: Tasks, **options: Any) -> Learned:
    given: dict[str, Any] = {"steps": 20, "learning_rate": 0.02, "tolerance": None, **options}
    return adamerging(tasks.base, tasks.experts, tasks.models, tasks.examples, **given)


@pytest.mark.parametrize("options", [{}, {"granularity": "model"}, {"granularity": "layer"}, {"vectors": "ties"}])
def test_entropy_falls_and_the_recipe_holds_the_coefficients(tasks: Tasks, options: dict[str, Any]) -> None:
    found = run(tasks, **options)
    assert found.facts["end"]["entropy"] < found.facts["start"]["entropy"]
    assert found.values.min() >= 0 and found.values.max() <= 1
    content = found.recipe(base="base", experts={"red": "r", "blue": "b"})
    request = parse_native(content, origin="r", folder=Path())
    assert request.coefficients or content["parameters"]["weight"]
    assert set(found.state()) == set(tasks.base)


def test_same_call_same_numbers_and_labels_are_never_seen(tasks: Tasks) -> None:
    first = run(tasks)
    hidden = {task: [(x, 0) for x, _ in found] for task, found in tasks.examples.items()}
    second = adamerging(tasks.base, tasks.experts, tasks.models, hidden, steps=20, learning_rate=0.02, tolerance=None)
    assert torch.equal(first.values, second.values)
    assert not torch.equal(first.values, run(tasks, seed=1).values)


def test_the_clamp_holds_coefficients_and_counts_them(tasks: Tasks) -> None:
    found = run(tasks, start=1.2, tolerance=None)
    assert torch.equal(found.values, torch.ones_like(found.values))  # no gradient outside the range
    assert found.facts["saturated"] == found.values.numel()
    assert "held at 0 or 1" in found.notices[-1]
    free = run(tasks, start=1.2, clamp=False, tolerance=None)
    assert not torch.equal(free.values, torch.full_like(free.values, 1.2)) and free.facts["saturated"] == 0


def test_the_guard_returns_the_best_agreement_where_it_drops(tasks: Tasks) -> None:
    unguarded = run(tasks)
    scores = [entry["score"] for entry in unguarded.trace]
    assert scores[-1] < max(scores) - 0.02  # surer and further from the experts: entropy alone misleads here
    found = run(tasks, tolerance=0.02)
    assert found.facts["end"]["score"] == max(entry["score"] for entry in found.trace)
    assert "stopped there" in found.notices[0]
    assert tasks.mean_accuracy(found.state()) >= tasks.mean_accuracy(unguarded.state())


def test_a_killed_run_goes_on_to_the_same_numbers(tasks: Tasks, tmp_path: Path) -> None:
    expected = run(tasks, every=5)
    with Job(tmp_path / "out", kind="learn", request={"x": 1}) as job:
        record = job.record

        def stop(key: str, **facts: Any) -> None:
            record(key, **facts)
            if key == "step 10":
                job.cancel()

        job.record = stop  # type: ignore[method-assign]
        with pytest.raises(CancelledError):
            run(tasks, every=5, job=job)
    with Job(tmp_path / "out", kind="learn", request={"x": 1}) as job:
        assert set(job.done) == {"step 5", "step 10"}
        again = run(tasks, every=5, job=job)
    assert torch.equal(again.values, expected.values)
    assert [e["score"] for e in again.trace] == [e["score"] for e in expected.trace]


def test_wrong_requests_are_reported_together(tasks: Tasks) -> None:
    with pytest.raises(RequestError, match=r"(?s)each task.*task 'red' has no inputs.*steps 0"):
        adamerging(
            tasks.base,
            {"red": tasks.experts["red"]},
            tasks.models,
            {"red": [], "blue": tasks.examples["blue"]},
            steps=0,
        )
    single = Tasks(steps=1)
    single.models["red"].head = torch.randn(1, 4)
    with pytest.raises(RequestError, match="single outcome"):
        run(single)


def test_nan_in_the_inputs_stops_the_work(tasks: Tasks) -> None:
    broken = {**tasks.examples, "red": [(x * float("nan"), y) for x, y in tasks.examples["red"]]}
    with pytest.raises(RequestError, match="NaN"):
        adamerging(tasks.base, tasks.experts, tasks.models, broken, steps=2)
    late = {**tasks.examples, "red": [*tasks.examples["red"][:8], *broken["red"][:8]]}
    with pytest.raises(WorkError, match="loss is nan in step"):
        adamerging(tasks.base, tasks.experts, tasks.models, late, steps=5, monitored=8)


def test_batches_run_through_all_examples() -> None:
    seen = [x for draw in range(3) for x in shuffled_batch(range(9), 3, draw, "t")]
    assert sorted(seen) == list(range(9)) and seen != list(range(9))
    assert shuffled_batch(range(9), 3, 1, "t") != shuffled_batch(range(9), 3, 4, "t")
