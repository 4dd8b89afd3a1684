from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.numpy import save_file

from consilience.checkpoints import open_checkpoint
from consilience.tuning.composition import Composition
from consilience.tuning.shelf import Shelf
from consilience.tuning.slerp_positions import SlerpPositions
from consilience.tuning.states import StoredState, float_state


def states(seed: int) -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return {"a": torch.randn(4, 3, generator=generator), "b": torch.randn(5, generator=generator)}


def test_what_is_put_comes_back_and_leaves_no_file(tmp_path: Path) -> None:
    shelf = Shelf(tmp_path)
    given = [torch.randn(3, 4), torch.randn(2, dtype=torch.float64), torch.randn(0, 3), torch.randn(4, 3).T]
    found = [shelf.put(one) for one in given]
    del shelf
    assert all(torch.equal(a, b) and a.dtype == b.dtype for a, b in zip(given, found, strict=True))
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("vectors", ["difference", "ties"])
def test_a_composition_on_disk_is_the_one_in_memory(tmp_path: Path, vectors: str) -> None:
    base, experts = states(0), {"x": states(1), "y": states(2)}
    values = torch.tensor([[0.3, 0.7], [0.5, -0.2]])
    made = [
        Composition(base, experts, vectors=vectors, scratch=scratch)  # type: ignore[arg-type]
        for scratch in (None, tmp_path)
    ]
    first, second = (one.parameters(values) for one in made)
    assert all(torch.equal(first[name], second[name]) for name in base)
    assert torch.equal(*(one.gradient(states(3)) for one in made))


def test_positions_on_disk_are_those_in_memory(tmp_path: Path) -> None:
    base, experts = states(0), {"x": states(1), "y": states(2)}
    made = [SlerpPositions(base, experts, scratch=scratch) for scratch in (None, tmp_path)]
    values = made[0].coefficients(torch.ones(2), torch.tensor(0.5))
    first, second = (one.parameters(values) for one in made)
    assert all(torch.equal(first[name], second[name]) for name in base)


def test_a_stored_state_reads_tensors_as_they_are_asked_for(tmp_path: Path) -> None:
    content = {"w": np.arange(6, dtype=np.float16).reshape(2, 3), "ids": np.arange(3)}
    (tmp_path / "model").mkdir()
    save_file(content, tmp_path / "model" / "model.safetensors")
    (tmp_path / "model" / "config.json").write_text("{}")
    checkpoint = open_checkpoint(tmp_path / "model")
    state = StoredState(checkpoint, checkpoint.tensors)
    assert list(state) == ["w"] and len(state) == 1 and "ids" not in state
    assert state["w"].dtype == torch.float32 and torch.equal(state["w"], float_state(checkpoint, ["w"])["w"])
