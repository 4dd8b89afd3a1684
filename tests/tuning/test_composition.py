"""Compositions: what parameters, gradients, states and recipes of the same coefficients have in common."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from consilience.errors import RequestError
from consilience.merging.memory import merge_state_dicts
from consilience.tuning.composition import Composition, select_tensors

SHAPES = {"h.0.w": (4, 3), "h.0.b": (4,), "h.1.w": (4, 3), "h.1.b": (4,), "head": (5,)}


def states(count: int = 3) -> tuple[dict[str, Tensor], dict[str, dict[str, Tensor]]]:
    generator = torch.Generator().manual_seed(0)
    made = [{n: torch.randn(s, generator=generator) for n, s in SHAPES.items()} for _ in range(count + 1)]
    for state in made:
        state["ids"] = torch.arange(3)
    return made[0], {name: made[i + 1] for i, name in enumerate(["c", "a", "b"][:count])}


KINDS: list[dict[str, Any]] = [
    {"granularity": "model"},
    {"granularity": "layer"},
    {},
    {"pieces": {"h.0.w": 5, "head": 2}},
    {"groups": 3, "seed": 4},
    {"vectors": "ties", "density": 0.4},
    {"vectors": "ties", "granularity": "model"},
]


@pytest.mark.parametrize("options", KINDS, ids=str)
def test_parameters_state_and_gradient_agree(options: dict[str, Any]) -> None:
    base, experts = states()
    composition = Composition(base, experts, **options)
    values = torch.randn(composition.shape, generator=torch.Generator().manual_seed(1)).requires_grad_(True)
    composed = composition.parameters(values)
    merged = composition.state(values)
    assert set(merged) == set(base) and torch.equal(merged["ids"], base["ids"])
    for name, value in composed.items():
        torch.testing.assert_close(value.detach(), merged[name], rtol=1e-5, atol=1e-6)
    slopes = {name: torch.randn_like(value) for name, value in composed.items()}
    torch.autograd.backward(list(composed.values()), list(slopes.values()))
    assert values.grad is not None
    torch.testing.assert_close(composition.gradient(slopes).float(), values.grad, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("options", KINDS, ids=str)
def test_the_recipe_names_what_the_state_is_made_of(options: dict[str, Any]) -> None:
    base, experts = states()
    composition = Composition(base, experts, **options)
    values = torch.rand(composition.shape)
    content = composition.recipe(values, base="B", experts={name: name for name in experts})
    given = {key: content[key] for key in ("coefficients",) if key in content} | content.get("parameters", {})
    again = merge_state_dicts(content["method"], base, experts, **given)
    assert all(torch.equal(value, again[name]) for name, value in composition.state(values).items())


def test_blocks_and_pieces() -> None:
    base, experts = states()
    assert Composition(base, experts, granularity="layer").blocks == ("h.0", "h.1", "outside the layers")
    cut = Composition(base, experts, tensors=["h.0.w", "head"], pieces={"h.0.w": 5})
    assert cut.blocks == ("h.0.w[0]", "h.0.w[1]", "h.0.w[2]", "h.0.w[3]", "head")  # pieces of 3 of 12: four of them
    assert cut.names == ("a", "b", "c")
    assert set(cut.parameters(torch.zeros(cut.shape))) == {"h.0.w", "head"}
    assert torch.equal(cut.state(torch.ones(cut.shape))["h.1.w"], base["h.1.w"])
    assert select_tensors(base, include="h", matrices=True) == ("h.0.w", "h.1.w")


def test_groups_are_no_more_than_elements() -> None:
    base, experts = states()
    composition = Composition(base, experts, groups=100, tensors=["head"])
    assert composition.shape == (3, 5)
    composition.state(torch.rand(3, 5))


def test_what_does_not_fit_is_refused() -> None:
    base, experts = states()
    experts["a"]["h.0.w"] = torch.zeros(2)
    experts["b"]["head"] = torch.full((5,), torch.nan)
    with pytest.raises(RequestError, match=r"(?s)expert 'a': h.0.w is \[2\].*expert 'b': NaN"):
        Composition(base, experts)
    base, experts = states()
    wrong: list[Callable[[], Composition]] = [
        lambda: Composition(base, {}),
        lambda: Composition(base, experts, tensors=["ids"]),
        lambda: Composition(base, experts, pieces={"none": 2}),
        lambda: Composition(base, experts, pieces={"head": 2}, groups=2),
        lambda: Composition(base, experts, granularity="model", groups=2),
        lambda: Composition(base, experts, groups=0),
    ]
    for make in wrong:
        with pytest.raises(RequestError):
            make()
    with pytest.raises(RequestError, match="coefficients"):
        Composition(base, experts).parameters(torch.zeros(1, 1))
    with pytest.raises(RequestError, match="not those that were merged"):
        Composition(base, experts).recipe(torch.zeros(3, 5), base="B", experts={"a": "a"})
