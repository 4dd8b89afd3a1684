"""Iterated SLERP as coefficients, and the descent on a probe of pairs with a small encoder of words."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

from consilience.core.jobs import Job
from consilience.errors import RequestError, WorkError
from consilience.merging.memory import merge_state_dicts
from consilience.training.loss import in_batch_negatives
from consilience.tuning.self_positioning import SelfPositioning, self_positioning
from consilience.tuning.slerp_positions import SlerpPositions, fold

State = dict[str, Tensor]
Pair = tuple[tuple[int, ...], tuple[int, ...]]


class WordPairs:
    """Mean of word vectors, InfoNCE in the batch; an example is (query words, document words)."""

    def __init__(self, state: Mapping[str, Tensor]) -> None:
        self.name, self.module = "words", nn.Embedding(*state["weight"].shape)
        self.names = {"weight": "weight"}
        self.sizes: list[int] = []

    def batches(self, examples: Sequence[Pair], size: int) -> Iterator[Any]:
        for start in range(0, len(examples), size):
            pairs = examples[start : start + size]
            same = torch.tensor([[a[1] == b[1] for b in pairs] for a in pairs])
            self.sizes.append(len(pairs))
            yield *(torch.tensor([p[i] for p in pairs]) for i in (0, 1)), same

    def logits(self, batch: Any, parameters: Mapping[str, Tensor] | None = None) -> Tensor:
        raise AssertionError("only the loss is asked for")

    def loss(self, batch: Any, parameters: Mapping[str, Tensor] | None = None, *, reduction: str = "mean") -> Tensor:
        assert parameters is not None
        queries, documents = (functional.embedding(ids, parameters["weight"]).mean(dim=1) for ids in batch[:2])
        return in_batch_negatives(queries, documents, batch[2])


def pairs(seed: int, words: range, count: int = 60) -> list[Pair]:
    """Query word 2i belongs to document word 2i + 1."""
    random = np.random.default_rng(seed)
    even = [w for w in words if w % 2 == 0]
    chosen = [random.choice(even, 2, replace=False) for _ in range(count)]
    return [(tuple(map(int, c)), tuple(int(w) + 1 for w in c)) for c in chosen]


def tuned(base: State, probe: list[Pair], steps: int = 30) -> State:
    weight = base["weight"].clone().requires_grad_(True)
    optimiser = torch.optim.Adam([weight], lr=0.02)
    model = WordPairs(base)
    (batch,) = model.batches(probe, len(probe))
    for _ in range(steps):
        optimiser.zero_grad()
        model.loss(batch, {"weight": weight}).backward()
        optimiser.step()
    return {"weight": weight.detach(), "ids": base["ids"]}


class Setting:
    """Two tasks over words of their own, an expert each."""

    def __init__(self) -> None:
        torch.manual_seed(0)
        self.base: State = {"weight": torch.randn(40, 8), "ids": torch.arange(3)}
        self.probes = {"first": pairs(1, range(20)), "second": pairs(2, range(20, 40))}
        self.experts = {task: tuned(self.base, probe) for task, probe in self.probes.items()}
        self.models = {task: WordPairs(self.base) for task in self.probes}

    def run(self, **settings: Any) -> SelfPositioning:
        given: dict[str, Any] = {"steps": 40, "batch": 16, **settings}
        experts = given.pop("experts", self.experts)
        return self_positioning(self.base, experts, self.models, given.pop("examples", self.probes), **given)


@pytest.fixture(scope="module")
def setting() -> Setting:
    return Setting()


def slerp(a: Tensor, b: Tensor, beta: float) -> Tensor:
    between = torch.arccos(functional.cosine_similarity(a, b, dim=0))
    return (torch.sin((1 - beta) * between) * a + torch.sin(beta * between) * b) / torch.sin(between)


@pytest.mark.parametrize("per_tensor", [False, True])
def test_positions_are_folded_slerps_of_whole_vectors_or_of_tensors(per_tensor: bool) -> None:
    torch.manual_seed(1)
    base = {name: torch.randn(4, 3, dtype=torch.float64) for name in "uv"}
    experts = {str(i): {n: v + torch.randn_like(v) for n, v in base.items()} for i in range(3)}
    a = torch.tensor([0.5, 1.5, 1.0], dtype=torch.float64)
    positions = SlerpPositions(base, experts, per_tensor=per_tensor)
    found = positions.parameters(positions.coefficients(a, torch.tensor(1.2)))
    groups = [("u",), ("v",)] if per_tensor else [("u", "v")]
    for names in groups:
        v = [torch.cat([(e[n] - base[n]).reshape(-1) for n in names]) for e in experts.values()]
        expected = 1.2 * slerp(slerp(v[0], v[1], 1.5 / 2.0), v[2], 1.0 / (1.0 + 1.0))
        ours = torch.cat([(found[n] - base[n]).reshape(-1) for n in names])
        assert torch.allclose(ours, expected, atol=1e-6)


def test_parallel_vectors_are_interpolated_and_opposite_ones_refused() -> None:
    base = {"w": torch.zeros(3, dtype=torch.float64)}
    way = torch.tensor([1.0, 2.0, 2.0], dtype=torch.float64)
    positions = SlerpPositions(base, {"a": {"w": way}, "b": {"w": 3 * way}})
    values = positions.coefficients(torch.ones(2), torch.tensor(1.0))
    assert torch.allclose(positions.parameters(values)["w"], 2 * way)
    opposite = SlerpPositions(base, {"a": {"w": way}, "b": {"w": -way}})
    with pytest.raises(RequestError, match="points opposite"):
        opposite.coefficients(torch.ones(2), torch.tensor(1.0))


def test_angles_follow_the_weights() -> None:
    values = torch.eye(2, dtype=torch.float64)
    near = fold(values, torch.tensor([3.0, 1.0], dtype=torch.float64))
    assert near[0] > near[1] > 0  # the larger a, the closer
    positions = SlerpPositions({"w": torch.zeros(2)}, {n: {"w": values[i].float()} for i, n in enumerate("ab")})
    angles = positions.angles(positions.coefficients(torch.ones(2), torch.tensor(0.3)))
    assert angles == pytest.approx({"a": 45.0, "b": 45.0})


def test_wrong_experts_are_named(setting: Setting) -> None:
    base = setting.base
    wrong = {
        "longer": {**base, "weight": torch.zeros(41, 8)},
        "more": {**base, "head": torch.zeros(2)},
    }
    with pytest.raises(RequestError, match=r"(?s)'longer': 1 tensors.*'more': 1 tensors"):
        setting.run(experts=wrong)
    with pytest.raises(RequestError, match="'same' has a zero task vector"):
        setting.run(experts={**setting.experts, "same": base})
    with pytest.raises(RequestError, match="no experts"):
        setting.run(experts={})
    with pytest.raises(RequestError, match="'second' has 3 pairs"):
        setting.run(examples={**setting.probes, "second": setting.probes["second"][:3]})


def test_descent_lowers_the_held_out_loss_and_ends_as_a_recipe(setting: Setting) -> None:
    found = setting.run()
    assert min(entry["held_out"] for entry in found.trace) < found.trace[0]["held_out"]
    best = min(found.trace, key=lambda entry: entry["held_out"])
    assert (list(found.a), found.norm) == (best["a"], best["norm"])
    assert torch.equal(found.state["ids"], setting.base["ids"])
    recipe = found.recipe(base="base", experts={"first": "models/first", "second": "models/second"})
    merged = merge_state_dicts("task_arithmetic", setting.base, setting.experts, **recipe["parameters"])
    assert torch.allclose(merged["weight"], found.state["weight"], atol=1e-6)
    assert setting.run().state["weight"].equal(found.state["weight"])
    with pytest.raises(RequestError, match="not those that were merged"):
        found.recipe(base="base", experts={"first": "models/first"})


def test_angles_per_tensor_end_as_coefficients(setting: Setting) -> None:
    found = setting.run(per_tensor=True, steps=10)
    assert found.values.shape == (2, 1)
    recipe = found.recipe(base="base", experts={"first": "a", "second": "b"})
    assert recipe["coefficients"][0]["tensors"] == "weight"
    assert set(recipe["coefficients"][0]) == {"tensors", "first", "second"}


def test_a_huge_price_of_the_norm_gives_the_base(setting: Setting) -> None:
    found = setting.run(mu=100.0, steps=200)  # the losses of this toy are about 10
    assert found.norm < 0.2
    assert found.norm < setting.run(mu=0.01).norm


def test_one_expert_learns_its_norm_only(setting: Setting) -> None:
    found = setting.run(experts={"first": setting.experts["first"]}, steps=20)
    assert found.a == (pytest.approx(1.0),)
    assert found.values.tolist() == [pytest.approx(found.norm)]


def test_probes_are_of_one_size_and_no_batch_has_a_single_pair(setting: Setting) -> None:
    for model in setting.models.values():
        model.sizes.clear()
    setting.run(examples={**setting.probes, "second": setting.probes["second"][:35]}, steps=1, batch=16)
    sizes = {task: model.sizes for task, model in setting.models.items()}
    assert sizes["first"] == sizes["second"] == [9, 9, 9, 8]


def test_a_flat_loss_stops_and_says_so(setting: Setting) -> None:
    alike = {task: [probe[0]] * 20 for task, probe in setting.probes.items()}  # equal texts: no negatives at all
    found = setting.run(examples=alike, mu=0.0, patience=2, steps=100)
    assert len(found.trace) == 3
    assert "since step 0; stopped" in found.notices[0] and "no position" in found.notices[1]


def test_nan_is_an_error(setting: Setting) -> None:
    broken = {task: {**state, "weight": state["weight"] * torch.nan} for task, state in setting.experts.items()}
    with pytest.raises(RequestError, match=r"(?s)'first': NaN.*'second': NaN"):
        setting.run(experts=broken)

    class Broken(WordPairs):
        def loss(self, *given: Any, **named: Any) -> Tensor:
            return super().loss(*given, **named) * torch.nan

    models = {**setting.models, "second": Broken(setting.base)}
    with pytest.raises(WorkError, match="loss is nan in step 0"):
        self_positioning(setting.base, setting.experts, models, setting.probes)


def test_a_stopped_run_resumes_with_the_same_bits(setting: Setting, tmp_path: Path) -> None:
    whole = setting.run(steps=35)

    class Stop(Exception):
        pass

    with pytest.raises(Stop), Job(tmp_path / "out", kind="sp", request={}) as job:
        record = job.record

        def stop(key: str, **facts: Any) -> None:
            record(key, **facts)
            if key == "step 20":
                raise Stop

        job.record = stop  # type: ignore[method-assign]
        setting.run(steps=35, job=job)
    with Job(tmp_path / "out", kind="sp", request={}) as job:
        resumed = setting.run(steps=35, job=job)
    assert resumed.state["weight"].equal(whole.state["weight"])
    assert (resumed.a, resumed.norm, resumed.trace) == (whole.a, whole.norm, whole.trace)
