"""Training of slimmable networks: what is learned, what is repeated, what is refused."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch

from consilience.errors import DataError
from consilience.models.slimmable import SlimmableConfig, SlimmableNetwork, Widths
from consilience.training.slimmable import SlimmableTraining, Target, train_slimmable

CONFIG = SlimmableConfig(4, (16, 16), 16, {"sign": 2, "copy": 4}, (0.25, 0.5, 1.0))
X = np.random.default_rng(0).normal(size=(200, 4)).astype(np.float32)
TARGETS = {"sign": Target((X[:, 0] > 0).astype(np.int64)), "copy": Target(X, "squared")}
SETTINGS = SlimmableTraining(steps=60, learning_rate=1e-2)


def trained(settings=SETTINGS, seed=0):
    network = SlimmableNetwork(CONFIG, seed=0)
    train_slimmable(network, X, TARGETS, settings, seed=seed)
    return network


def test_all_widths_learn_and_the_same_seed_repeats():
    network, again, other = trained(), trained(), trained(seed=1)
    for widths in (CONFIG.full, CONFIG.smallest, Widths(0.5, {"sign": 0.25, "copy": 1.0})):
        with torch.no_grad():
            found = network(torch.from_numpy(X), widths)
        right = (found["sign"].argmax(1).numpy() == TARGETS["sign"].values).mean()
        assert right > 0.85
        assert float((found["copy"] - torch.from_numpy(X)).square().mean()) < 0.9 * float(X.var())
    states = [one.state_dict() for one in (network, again, other)]
    assert all(torch.equal(states[0][name], states[1][name]) for name in states[0])
    assert not all(torch.equal(states[0][name], states[2][name]) for name in states[0])


def test_distillation_brings_the_features_of_widths_together():
    def apart(network):
        x = torch.from_numpy(X)
        full, slim = (network.projected(network.features(x, width), "copy") for width in (1.0, 0.25))
        normal = torch.nn.functional.normalize
        return float((normal(full, dim=1) - normal(slim, dim=1)).square().sum(1).mean())

    assert apart(trained(replace(SETTINGS, distil=3.0))) < 0.8 * apart(trained(replace(SETTINGS, distil=0.0)))


def test_a_dedicated_network_trains_its_own_slice_alone():
    start = SlimmableNetwork(CONFIG, seed=0)
    made = trained(replace(SETTINGS, only=CONFIG.smallest, weight_decay=0.0))
    before, after = start.encoder[0].weight, made.encoder[0].weight
    assert torch.equal(before[4:], after[4:]) and not torch.equal(before[:4], after[:4])


def test_targets_of_the_full_network_can_be_taken_too():
    assert all(torch.isfinite(value).all() for value in trained(replace(SETTINGS, logits=1.0)).state_dict().values())


def test_wrong_data_are_named_together():
    network = SlimmableNetwork(CONFIG)
    wrong = {"sign": Target(np.zeros(3, np.int64)), "other": Target(X)}
    with pytest.raises(DataError, match=r"(?s)targets of \['other', 'sign'\].*task sign: targets have shape \(3,\)"):
        train_slimmable(network, X, wrong, SETTINGS)
    broken = X.copy()
    broken[0, 0] = np.nan
    with pytest.raises(DataError, match="NaN or infinity among the inputs"):
        train_slimmable(network, broken, TARGETS, SETTINGS)
