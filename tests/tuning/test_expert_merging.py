"""Expert Merging on small networks: imitation, pieces, budgets, schedule, errors."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from consilience.errors import RequestError, WorkError
from consilience.tuning.expert_merging import _restarts, chunk_counts, expert_merging, importance
from consilience.tuning.learning import Learned
from tests.tuning.tasks import Tasks


@pytest.fixture(scope="module")
def tasks() -> Tasks:
    return Tasks()


def run(tasks: Tasks, **options: Any) -> Learned:
    few = {task: found[:10] for task, found in tasks.examples.items()}
    given: dict[str, Any] = {"hidden": ("0", "2"), "start": 0.3, "regularisation": 0.1, "learning_rate": 0.05}
    given |= {"steps": 60, "accumulation": 2, "batch": 10, **options}
    return expert_merging(tasks.base, tasks.experts, tasks.models, few, **given)


@pytest.mark.parametrize("options", [{}, {"constrained": False}, {"hidden": ()}, {"temperature": 2.0}])
def test_the_merged_model_comes_closer_to_the_experts(tasks: Tasks, options: dict[str, Any]) -> None:
    found = run(tasks, **options)
    assert found.facts["end"] < found.facts["start"]
    if "constrained" not in options:
        assert found.values.min() > 0 and found.values.max() < 1


def test_one_expert_is_taken_over_whole(tasks: Tasks) -> None:
    one = {"red": tasks.examples["red"][:10]}
    found = expert_merging(
        tasks.base,
        {"red": tasks.experts["red"]},
        {"red": tasks.models["red"]},
        one,
        hidden=("0", "2"),
        regularisation=0,
        steps=150,
        accumulation=1,
        batch=10,
        learning_rate=0.1,
    )
    matrices = [found.composition.blocks.index(name) for name in ("0.weight", "2.weight")]
    assert float(found.values[0, matrices].min()) > 0.9
    assert found.facts["end"] < 0.02 * found.facts["start"]


def test_the_regulariser_pins_coefficients_to_the_start(tasks: Tasks) -> None:
    free, pinned = (run(tasks, regularisation=weight, steps=30) for weight in (0.0, 50.0))
    assert (pinned.values - 0.3).abs().mean() < (free.values - 0.3).abs().mean()


def test_one_piece_each_is_the_first_stage_again(tasks: Tasks) -> None:
    first = run(tasks, steps=10)
    again = run(tasks, steps=10, pieces=dict.fromkeys(tasks.base, 1))
    assert torch.equal(first.values, again.values)


def test_pieces_and_what_stays_at_the_start(tasks: Tasks) -> None:
    found = run(tasks, steps=10, pieces={"0.weight": 3, "0.bias": 0})
    assert found.composition.blocks[:4] == ("0.weight[0]", "0.weight[1]", "0.weight[2]", "0.bias")
    assert found.values[:, 3].tolist() == pytest.approx([0.3, 0.3], abs=1e-6)
    assert found.facts["coefficients"] == 2 * 5
    assert found.method == "expert_merging++"
    assert found.coefficients[0]["red"] == pytest.approx(found.values[1, :3].tolist())


def test_importance_and_counts(tasks: Tasks) -> None:
    shares = importance(run(tasks, steps=5))
    assert sum(shares.values()) == pytest.approx(1)
    assert max(shares, key=shares.__getitem__) == "0.weight"  # the largest tensor
    for budget in (3, 4, 5, 9):
        assert sum(chunk_counts(shares, budget).values()) <= budget
    assert chunk_counts(shares, 4, steepness=0) == dict.fromkeys(tasks.base, 1)


def test_the_second_stage_is_no_worse(tasks: Tasks) -> None:
    first = run(tasks)
    second = run(tasks, pieces=chunk_counts(importance(first), 6))
    assert second.facts["coefficients"] <= 2 * 6
    assert second.facts["end"] < first.facts["start"]


def test_excluded_tensors_stay_at_the_base(tasks: Tasks) -> None:
    found = run(tasks, exclude=r".*bias", steps=3)
    assert torch.equal(found.state()["0.bias"], tasks.base["0.bias"])
    assert not torch.equal(found.state()["0.weight"], tasks.base["0.weight"])


def test_the_schedule_restarts() -> None:
    assert [round(_restarts(step), 3) for step in (0, 25, 50, 100, 150)] == [1.0, 0.55, 1.0, 0.55, 1.0]


def test_wrong_requests_are_reported_together(tasks: Tasks) -> None:
    with pytest.raises(RequestError) as caught:
        expert_merging(
            tasks.base, {"red": tasks.experts["red"]}, tasks.models, {"red": [], "blue": []}, hidden=("9",), start=2
        )
    for part in ("each task needs all three", "'red' has no inputs", "'9' is no module", "start 2"):
        assert part in str(caught.value)


def test_nan_stops_the_work(tasks: Tasks) -> None:
    broken = {task: [(x * float("nan"), y) for x, y in found] for task, found in tasks.examples.items()}
    with pytest.raises(WorkError, match="nan"):
        expert_merging(tasks.base, tasks.experts, tasks.models, broken, steps=2)
