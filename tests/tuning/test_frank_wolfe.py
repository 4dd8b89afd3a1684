"""Frank-Wolfe merging on small networks: picks, coefficients, memory, errors, resuming."""

from __future__ import annotations

import weakref
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from torch import Tensor

from consilience.core.jobs import Job
from consilience.errors import RequestError, WorkError
from consilience.merging.memory import merge_state_dicts
from consilience.tuning.frank_wolfe import INITIAL, FrankWolfe, _project, frank_wolfe
from consilience.tuning.frank_wolfe_pool import Pool
from tests.tuning.tasks import Tasks
from tests.tuning.toy import ToyPredictor, toy, toy_examples

State = dict[str, Tensor]


def single(model: ToyPredictor) -> ToyPredictor:
    """The same network in single precision, as checkpoints have it."""
    model.module.float()
    model.head = model.head.float()
    return model


def examples(seed: int, count: int = 24) -> list[Any]:
    return [(x.astype(np.float32), y) for x, y in toy_examples(seed, count)]


def trained(model: ToyPredictor, data: list[Any], steps: int = 60) -> State:
    state = {name: value.detach().clone().requires_grad_(True) for name, value in model.module.named_parameters()}
    optimiser = torch.optim.Adam(list(state.values()), lr=0.02)
    (batch,) = model.batches(data, len(data))
    for _ in range(steps):
        optimiser.zero_grad()
        model.loss(batch, state).backward()
        optimiser.step()
    return {name: value.detach() for name, value in state.items()}


class Setting:
    """Two tasks with an expert each, and experts of shuffled labels."""

    def __init__(self) -> None:
        self.models = {"red": single(toy(0)), "blue": single(toy(0))}
        torch.manual_seed(9)
        self.models["blue"].head = torch.randn(3, 4)
        self.base = {n: v.detach().clone() for n, v in self.models["red"].module.named_parameters()}
        self.examples = {"red": examples(1), "blue": examples(2)}
        self.pool = {task: trained(self.models[task], self.examples[task]) for task in self.models}
        for seed in (5, 6):
            wrong = [(x, (y + seed) % 3) for x, y in examples(seed)]
            self.pool[f"noise{seed}"] = trained(self.models["red"], wrong)

    def run(self, pool: dict[str, Any] | None = None, **settings: Any) -> FrankWolfe:
        return frank_wolfe(self.base, self.pool if pool is None else pool, self.models, self.examples, **settings)


@pytest.fixture(scope="module")
def setting() -> Setting:
    return Setting()


CASES = [
    {"variant": "hard", "granularity": "task", "step_size": 1.0, "iterations": 5},
    {"variant": "hard", "granularity": "layer", "step_size": 1.0, "iterations": 5, "score": "inner_product"},
    {"variant": "soft", "granularity": "task", "iterations": 2, "learning_steps": 10, "learning_rate": 0.01},
    {"variant": "soft", "granularity": "layer", "iterations": 2, "learning_steps": 0},
]


@pytest.mark.parametrize("case", CASES, ids=lambda case: f"{case['variant']}-{case['granularity']}")
def test_the_result_is_a_linear_combination_of_task_vectors(setting: Setting, case: dict[str, Any]) -> None:
    found = setting.run(**case)
    assert found.trace[-1]["loss"] < found.start_loss
    for place, tensor in enumerate(found.tensors):
        weight = dict(zip(found.models, found.values[:, place].tolist(), strict=True))
        experts = {name: {tensor: state[tensor]} for name, state in setting.pool.items()}
        merged = merge_state_dicts("task_arithmetic", {tensor: setting.base[tensor]}, experts, weight=weight)
        assert torch.allclose(merged[tensor], found.state[tensor], atol=1e-6)
    again = setting.run(**case)
    assert np.array_equal(again.values, found.values) and again.trace == found.trace


def test_recipes_name_only_models_with_weight(setting: Setting) -> None:
    references = {name: f"models/{name}" for name in setting.pool}
    hard = setting.run(granularity="task", step_size=1.0, iterations=3)
    content = hard.recipe(base="models/base", experts=references)
    assert content["parameters"]["weight"] == dict(zip(hard.models, hard.values[:, 0].tolist(), strict=True))
    soft = setting.run(variant="soft", granularity="task", iterations=1, learning_steps=5, learning_rate=0.01)
    content = soft.recipe(base="models/base", experts=references)
    picked = soft.picks()
    assert sorted(content["experts"]) == sorted(picked) and len(picked) == 2
    assert [entry["tensors"] for entry in content["coefficients"]] == list(soft.tensors)
    assert yaml.safe_load(yaml.safe_dump(content)) == content
    with pytest.raises(RequestError, match="no reference is given for"):
        soft.recipe(base="models/base", experts={})


def test_relevant_models_are_picked(setting: Setting) -> None:
    found = setting.run(variant="soft", granularity="task", iterations=1, learning_steps=0, score="inner_product")
    assert set(found.picks()) == {"red", "blue"}


def test_one_model_at_a_time_is_in_memory(setting: Setting) -> None:
    alive: list[weakref.ref[Tensor]] = []
    most = 0

    def reader(state: State) -> Callable[[], State]:
        def read() -> State:
            nonlocal most
            most = max(most, sum(ref() is not None for ref in alive))
            copy = {name: value.clone() for name, value in state.items()}
            alive.append(weakref.ref(copy["0.weight"]))
            return copy

        return read

    for count in (1, 4):
        most = 0
        pool = {f"{name}-{i}": reader(state) for name, state in setting.pool.items() for i in range(count)}
        lazy = setting.run(pool, granularity="task", step_size=1.0, iterations=2)
        assert most <= 1 + 1  # the one that is scored, and the one before it until it is replaced
    whole = {f"{name}-{i}": state for name, state in setting.pool.items() for i in range(4)}
    assert np.array_equal(lazy.values, setting.run(whole, granularity="task", step_size=1.0, iterations=2).values)


def test_a_zero_gradient_or_tensor_scores_0() -> None:
    base = {"w": torch.ones(2), "b": torch.ones(2)}
    pool = Pool(base, {"a": {"w": torch.zeros(2), "b": torch.tensor([1.0, 0.0])}})
    scores = pool.scores([{"w": torch.ones(2), "b": torch.tensor([3.0, 0.0])}], None, "cosine")
    assert scores.tolist() == [[[0.0, 1.0]]]
    scores = pool.scores([{"w": torch.zeros(2), "b": torch.zeros(2)}], base, "cosine")
    assert scores.shape == (1, 2, 2) and not scores.any()
    scores = pool.scores([{"w": torch.ones(2), "b": torch.ones(2)}], None, "inner_product")
    assert scores.tolist() == [[[-2.0, -1.0]]]


def test_equal_scores_take_the_first(setting: Setting) -> None:
    pool = {"twin": setting.pool["red"], "red": setting.pool["red"], "blue": setting.pool["blue"]}
    found = setting.run(pool, granularity="task", step_size=1.0, iterations=4)
    assert "red" not in found.picks()


def test_more_tasks_than_models_end_the_turn(setting: Setting) -> None:
    for granularity in ("task", "layer"):
        found = setting.run(
            {"red": setting.pool["red"]}, variant="soft", granularity=granularity, iterations=1, learning_steps=0
        )
        assert len(found.trace[0]["picks"]) == 1


def test_projection_keeps_coefficients_in_the_simplex(setting: Setting) -> None:
    values = torch.tensor([[0.9, -0.2, 0.3], [0.6, 0.4, 0.2]])
    assert torch.allclose(_project(values), torch.tensor([[0.65, 0.0, 0.3], [0.35, 0.4, 0.2]]))
    settings: dict[str, Any] = {"variant": "soft", "granularity": "task", "iterations": 1, "learning_steps": 20}
    settings |= {"learning_rate": 0.2, "learning_loss": "cross_entropy"}
    free, kept = (setting.run(project=project, **settings) for project in (False, True))
    assert free.values.sum(axis=0).max() > 1.01 or free.values.min() < 0
    assert kept.values.min() >= 0 and kept.values.sum(axis=0).max() <= 1 + 1e-6


def test_labels_are_not_needed_for_entropy(setting: Setting) -> None:
    unlabelled = Setting()
    unlabelled.examples = {task: [(x, 0) for x, _ in found] for task, found in setting.examples.items()}
    settings: dict[str, Any] = {"loss": "entropy", "iterations": 2}
    assert np.array_equal(unlabelled.run(**settings).values, setting.run(**settings).values)


def test_wrong_models_are_named_before_the_run(setting: Setting) -> None:
    wrong = {
        **setting.pool,
        "small": {name: value[:1] for name, value in setting.base.items()},
        "broken": {name: value * torch.nan for name, value in setting.base.items()},
    }
    with pytest.raises(RequestError, match=r"(?s)'small' does not fit.*'broken': NaN"):
        setting.run(wrong)
    with pytest.raises(RequestError, match="rename that model"):
        setting.run({INITIAL: setting.base})
    with pytest.raises(RequestError, match="'red' has no examples"):
        frank_wolfe(setting.base, setting.pool, setting.models, {"red": [], "blue": examples(1)})
    with pytest.raises(RequestError, match="each task needs both"):
        frank_wolfe(setting.base, setting.pool, setting.models, {"red": examples(1)})


def test_a_loss_that_is_nan_is_an_error(setting: Setting) -> None:
    broken = {**setting.examples, "blue": [(x * np.nan, y) for x, y in setting.examples["blue"]]}
    with pytest.raises(WorkError, match="not finite for blue"):
        frank_wolfe(setting.base, setting.pool, setting.models, broken)


def test_flat_and_diverging_losses_stop(setting: Setting) -> None:
    flat = setting.run({"same": setting.base}, iterations=9)
    assert len(flat.trace) == 2 and "flat" in flat.notices[0]
    far = {"far": {name: value * -30 for name, value in setting.base.items()}}
    diverged = setting.run(far, variant="soft", granularity="task", learning_steps=0, scale=1.0, iterations=9)
    assert "the loss rose" in diverged.notices[0]
    assert not diverged.values.any()
    assert all(torch.equal(diverged.state[name], setting.base[name]) for name in diverged.tensors)


@pytest.mark.parametrize("variant", ["hard", "soft"])
def test_a_stopped_run_resumes_with_the_same_bits(setting: Setting, tmp_path: Path, variant: Any) -> None:
    settings: dict[str, Any] = {"variant": variant, "iterations": 4, "learning_steps": 6, "learning_rate": 0.01}
    whole = setting.run(**settings)

    class Stop(Exception):
        pass

    with pytest.raises(Stop), Job(tmp_path / "out", kind="fw", request=settings) as job:
        record, done = job.record, []

        def stop(key: str, **facts: Any) -> None:
            record(key, **facts)
            done.append(key)
            if len(done) == 2:
                raise Stop

        job.record = stop  # type: ignore[method-assign]
        setting.run(job=job, **settings)
    with Job(tmp_path / "out", kind="fw", request=settings) as job:
        assert len(job.done) == 2
        resumed = setting.run(job=job, **settings)
    assert np.array_equal(resumed.values, whole.values)
    assert all(torch.equal(resumed.state[name], whole.state[name]) for name in whole.tensors)


def test_learning_ends_where_nothing_moves() -> None:
    tasks = Tasks()
    calls = 0
    model = tasks.models["red"]
    plain = model.logits

    def counted(batch: Any, parameters: Any = None) -> torch.Tensor:
        nonlocal calls
        calls += 1
        return plain(batch, parameters).detach() * 0 + sum(p.sum() * 0 for p in (parameters or {}).values())

    model.logits = counted  # type: ignore[method-assign]
    frank_wolfe(
        tasks.base, tasks.experts, {"red": model}, {"red": tasks.examples["red"]}, variant="soft", iterations=1,
        learning_steps=400,
    )  # fmt: skip
    assert 20 <= calls < 60
