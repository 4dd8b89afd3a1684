"""The mixture-of-experts encoder: equal to dense before training, rows apart, gradients apart, saved and opened."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch

from consilience.errors import CheckpointError, OutputError, RequestError
from consilience.models import load_encoder
from consilience.models.routed import feed_forward_tensors, from_experts, open_routed_encoder, upcycle
from tests.models.tiny import write_bert

TEXTS = ["w1 w2 w3", "w4", "w5 w6 w7 w8 w9 w10", "w20 w21"]


@pytest.fixture
def folder(tmp_path):
    write_bert(tmp_path / "dense")
    return tmp_path / "dense"


@pytest.fixture
def routed(folder):
    made = upcycle(load_encoder(folder), ["law", "health"])
    with torch.no_grad():
        for value in made.experts["health"].values():
            value.add_(0.1 * torch.randn(value.shape, generator=torch.Generator().manual_seed(1)))
    return made


def test_upcycled_is_dense_for_every_assignment(folder):
    dense = load_encoder(folder)
    fresh = upcycle(load_encoder(folder), ["law", "health"], layers=[0])
    for domains in (["law"] * 4, ["health"] * 4, ["law", "health", "base", "law"]):
        assert np.abs(fresh.encode(TEXTS, domains) - dense.encode(TEXTS)).max() <= 1e-6


def test_every_row_gets_its_own_expert(routed):
    domains = ["health", "law", "base", "health"]
    mixed = routed.encode(TEXTS, domains)
    alone = np.concatenate([routed.encode([text], [name]) for text, name in zip(TEXTS, domains, strict=True)])
    assert np.abs(mixed - alone).max() <= 1e-6
    assert np.abs(routed.encode(TEXTS, ["law"] * 4) - routed.encode(TEXTS, ["health"] * 4)).max() > 1e-3


def test_gradients_stay_with_the_expert_of_the_batch(routed):
    for parameter in routed.parameters().values():
        parameter.requires_grad_(True)
    routed.forward(routed.encoder.tokenise(TEXTS), ["law"] * 4).square().sum().backward()
    assert all(value.grad is not None and value.grad.abs().sum() > 0 for value in routed.experts["law"].values())
    assert all(value.grad is None for value in routed.experts["health"].values())
    shared = [value for name, value in routed.parameters().items() if "attention" in name and "/" not in name]
    assert shared and all(value.grad is not None for value in shared)


def test_experts_are_copies(routed):
    before = routed.encode(TEXTS, ["law"] * 4)
    with torch.no_grad():
        for value in routed.experts["health"].values():
            value.zero_()
    assert (routed.encode(TEXTS, ["law"] * 4) == before).all()


def test_saved_and_opened_is_the_same_and_merging_back_gives_the_dense_expert(routed, tmp_path):
    routed.fit_centroids({"law": TEXTS[:2], "health": TEXTS[2:]})
    opened = open_routed_encoder(routed.save(tmp_path / "routed"))
    domains = ["health", "law", "base", "health"]
    assert (opened.encode(TEXTS, domains) == routed.encode(TEXTS, domains)).all()
    assert opened.counts() == routed.counts()
    unknown = [None] * 4
    assert (opened.encode(TEXTS, unknown, unknown="nearest") == routed.encode(TEXTS, unknown, unknown="nearest")).all()
    dense = load_encoder(routed.merge_back("health", tmp_path / "health"))
    assert np.abs(dense.encode(TEXTS) - routed.encode(TEXTS, ["health"] * 4)).max() <= 1e-6
    assert load_encoder(tmp_path / "routed").dimension == routed.encoder.dimension  # still a dense folder for others


def test_experts_made_of_fine_tuned_encoders(routed, folder, tmp_path):
    experts = {name: routed.merge_back(name, tmp_path / name) for name in routed.experts}
    made = from_experts(folder, experts)
    for name in experts:  # the other weights are equal here, so their mean is each expert's
        assert np.abs(made.encode(TEXTS, [name] * 4) - routed.encode(TEXTS, [name] * 4)).max() <= 1e-5


def test_texts_without_a_domain(routed):
    with pytest.raises(RequestError, match=r"2 texts have no domain.*name one of law, health"):
        routed.encode(TEXTS, ["law", None, "health", None])
    assert (routed.encode(TEXTS, [None] * 4, unknown="base") == routed.encode(TEXTS, ["base"] * 4)).all()
    with pytest.raises(RequestError, match="fit_centroids"):
        routed.encode(TEXTS, [None] * 4, unknown="nearest")


@pytest.mark.parametrize(
    ("domains", "message"),
    [(["law"] * 3, "3 domains for 4 texts"), (["law", "lew", "law", "law"], "'lew'.*did you mean 'law'")],
)
def test_wrong_assignments_are_refused(routed, domains, message):
    with pytest.raises(RequestError, match=message):
        routed.encode(TEXTS, domains)
    with pytest.raises(RequestError, match=message):
        routed.forward(routed.encoder.tokenise(TEXTS), domains)


def test_wrong_requests_name_what_is_wrong(folder, routed, tmp_path):
    encoder = load_encoder(folder)
    with pytest.raises(RequestError, match=r"layers \[9\].*has layers 0 to"):
        feed_forward_tensors(encoder, [9])
    with pytest.raises(RequestError, match=r"(?s)'base' cannot name.*stands twice"):
        upcycle(encoder, ["base", "a", "a"])
    place = routed.save(tmp_path / "routed")
    with pytest.raises(OutputError, match="not an empty folder"):
        routed.save(place)
    (place / "experts" / "law.safetensors").unlink()
    with pytest.raises(CheckpointError, match="expert law"):
        open_routed_encoder(place)
    record = json.loads((place / "routing.json").read_text())
    (place / "routing.json").write_text(json.dumps({**record, "version": 99}))
    with pytest.raises(RequestError, match="version 99"):
        open_routed_encoder(place)
