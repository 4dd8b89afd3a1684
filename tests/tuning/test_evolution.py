"""Evolutionary search: what is found, what is counted, what is repeated."""

import numpy as np
import pytest
import torch

from consilience.errors import RequestError, WorkError
from consilience.models.classifier import Head
from consilience.models.image import ImageClassifier, ImageEncoder
from consilience.models.image_network import PerceptronConfig
from consilience.tuning.evolution import evolution

ENCODER = ImageEncoder(PerceptronConfig(image_size=2, hidden_sizes=(4,)), seed=0)
MODEL = ImageClassifier(ENCODER, Head(torch.eye(4)[:2], torch.zeros(2), ("a", "b")))
BASE = ENCODER.state()
DRAW = np.random.default_rng(0)
IMAGES = [(DRAW.random((2, 2)).astype(np.float32), int(DRAW.random() < 0.5)) for _ in range(12)]
EXPERTS = {
    name: {n: v + 0.3 * torch.randn(v.shape, generator=torch.Generator().manual_seed(seed)) for n, v in BASE.items()}
    for seed, name in enumerate(("one", "two"))
}


def search(**options):
    return evolution(BASE, EXPERTS, {"t": MODEL}, {"t": IMAGES}, **{"budget": 31, **options})


def test_the_loss_falls_and_every_evaluation_counts(monkeypatch):
    calls = []
    monkeypatch.setattr(
        ImageClassifier, "loss", lambda *a, loss=ImageClassifier.loss, **k: calls.append(1) or loss(*a, **k)
    )
    state = np.random.get_state()[1].copy()
    found = search(population=6)
    assert (np.random.get_state()[1] == state).all()  # nobody else's random numbers were drawn
    assert found.facts["evaluations"] == len(calls) == 31 and found.facts["end"] < found.facts["start"]
    assert [entry["evaluations"] for entry in found.trace] == [1, 7, 13, 19, 25, 31]
    assert found.values.shape == (2, 1) and ((found.values >= 0) & (found.values <= 1.5)).all()
    assert set(found.recipe(base="b", experts={"one": "1", "two": "2"})["parameters"]["weight"]) == {"one", "two"}
    merged = found.state()
    (batch,) = MODEL.batches(IMAGES, 12)
    with torch.no_grad():
        assert float(MODEL.loss(batch, merged)) == pytest.approx(found.facts["end"], abs=1e-6)


def test_the_same_seed_repeats_and_another_does_not():
    first, again, other = search(), search(), search(seed=1)
    assert torch.equal(first.values, again.values) and not torch.equal(first.values, other.values)


def test_coefficients_by_tensor():
    found = search(granularity="tensor", budget=40)
    assert found.values.shape[1] == len(found.composition.tensors) > 1
    assert found.facts["evaluations"] <= 40


def test_a_flat_loss_stops_with_a_notice():
    same = {"one": BASE, "two": BASE}
    found = evolution(BASE, same, {"t": MODEL}, {"t": IMAGES}, budget=60)
    assert "flat" in found.notices[0] and found.facts["evaluations"] < 60
    assert "no coefficients had a lower loss" in found.notices[1]


def test_what_cannot_be_searched_is_refused():
    with pytest.raises(RequestError, match=r"budget 3; the start and one generation of 6 take 7"):
        search(budget=3)
    with pytest.raises(RequestError, match=r"(?s)task 't' has no examples.*start 2.0 between low"):
        evolution(BASE, EXPERTS, {"t": MODEL}, {"t": []}, start=2.0)
    broken = [(np.full((2, 2), np.nan, np.float32), 0)]
    with pytest.raises(WorkError, match="the loss at the start is inf"):
        evolution(BASE, EXPERTS, {"t": MODEL}, {"t": broken})
