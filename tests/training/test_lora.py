from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from consilience.errors import RequestError
from consilience.models import load_encoder
from consilience.training.lora import add_adapter, choose_targets
from tests.models.tiny import TEXTS, write_bert

LAYERS = ["encoder.layer.0.attention.query", "encoder.layer.0.output.dense", "encoder.layer.1.output.dense", "pooler"]


def test_targets_are_endings_of_names() -> None:
    assert choose_targets(LAYERS, None) == ["attention.query", "output.dense"]
    assert choose_targets(LAYERS, ["query"]) == ["query"]
    assert choose_targets(["up", "down"], None) == ["down", "up"]
    with pytest.raises(
        RequestError, match=r"\['ense', 'key'\] match no linear layer; .* found: .*\*\.attention\.query"
    ):
        choose_targets(LAYERS, ["ense", "query", "key"])


def test_a_new_adapter_changes_nothing_and_depends_on_the_seed_alone(tmp_path: Path) -> None:
    write_bert(tmp_path / "base")
    starts = []
    for seed in (5, 5, 6):
        encoder = load_encoder(tmp_path / "base", device="cpu")
        before = encoder.encode(TEXTS)
        torch.manual_seed(len(starts))  # the global generator has no say
        parameters, targets, transposed = add_adapter(
            encoder.stack.transformer, rank=4, alpha=8, targets=None, seed=seed
        )
        assert np.array_equal(encoder.encode(TEXTS), before)
        assert len(parameters) == 2 * 2 * len(targets) and not transposed
        assert {p for p in encoder.stack.transformer.parameters() if p.requires_grad} == set(parameters.values())
        starts.append({name: parameter.detach().clone() for name, parameter in parameters.items()})
    name = "base_model.model.encoder.layer.1.attention.self.query.lora_A.weight"
    assert torch.equal(starts[0][name], starts[1][name]) and not torch.equal(starts[0][name], starts[2][name])
    assert starts[0][name].abs().max() <= 1 / 32**0.5 and starts[0][name].std() > 0.05


def test_a_rank_above_the_layers_is_an_error(tmp_path: Path) -> None:
    write_bert(tmp_path / "base")
    encoder = load_encoder(tmp_path / "base", device="cpu")
    with pytest.raises(RequestError, match=r"rank 33 is above the smaller side of: encoder\.layer\.0\.attention"):
        add_adapter(encoder.stack.transformer, rank=33, alpha=8, targets=None, seed=0)
