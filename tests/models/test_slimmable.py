"""Slimmable networks: slices are networks of their own, costs are counted, wrong widths are named."""

from __future__ import annotations

import pytest
import torch

from consilience.errors import CheckpointError, OutputError, RequestError
from consilience.models.slimmable import SlimmableConfig, SlimmableNetwork, Widths, load_slimmable

CONFIG = SlimmableConfig(6, (10, 7), 9, {"a": 3, "b": 1}, (0.3, 0.5, 1.0))


@pytest.fixture
def network():
    made = SlimmableNetwork(CONFIG, seed=3)
    with torch.no_grad():
        for value in made.parameters():
            value.add_(0.1 * torch.randn(value.shape, generator=torch.Generator().manual_seed(0)))
    return made


def test_every_slice_is_a_dense_network_with_the_same_outputs_and_cost(network):
    x = torch.randn(5, 6, generator=torch.Generator().manual_seed(1))
    seen = 0
    for widths in CONFIG.every():
        dense = network.exported(widths)
        slim, own = network(x, widths), dense(x)
        assert all(torch.allclose(slim[task], own[task], atol=1e-6) for task in CONFIG.outputs)
        counted = sum(p.numel() for p in dense.parameters() if p.ndim == 2)
        assert counted == CONFIG.cost(widths)
        seen += 1
    assert seen == 3**3


def test_a_task_can_be_left_out(network):
    widths = Widths(0.5, {"a": 0.0, "b": 1.0})
    assert list(network(torch.zeros(2, 6), widths)) == ["b"]
    assert CONFIG.cost(widths) == CONFIG.encoder_cost(0.5) + CONFIG.decoder_cost("b", 0.5, 1.0)
    assert set(network.exported(widths).decoders) == {"b"}
    with pytest.raises(RequestError, match="every task is left out"):
        network.exported(Widths(0.5, {"a": 0.0, "b": 0.0}))


@pytest.mark.parametrize("widths", [None, Widths(0.3, {"a": 0.5, "b": 1.0})])
def test_saved_and_opened_is_the_same(network, widths, tmp_path):
    kept = network if widths is None else network.exported(widths)
    opened = load_slimmable(kept.save(tmp_path / "m"))
    x = torch.ones(2, 6)
    assert all(torch.equal(opened(x)[task], kept(x)[task]) for task in CONFIG.outputs)
    with pytest.raises(OutputError, match="not an empty folder"):
        kept.save(tmp_path / "m")


def test_wrong_widths_and_sizes_are_named(network, tmp_path):
    with pytest.raises(
        RequestError, match=r"(?s)encoder: width 0.4 was not trained.*decoder a: width 0.9.*'c' is unknown"
    ):
        network(torch.zeros(1, 6), Widths(0.4, {"a": 0.9, "c": 1.0}))
    with pytest.raises(RequestError, match=r"(?s)sizes are at least 1.*at least one task.*ascending"):
        SlimmableConfig(0, (), 1, {}, (1.0, 0.5))
    with pytest.raises(CheckpointError, match="no slimmable network"):
        load_slimmable(tmp_path)
