"""Training on pairs of several domains: the loss, what moves, what is repeated."""

from __future__ import annotations

import pytest
import torch

from consilience.errors import CancelledError, DataError, RequestError
from consilience.models import load_encoder
from consilience.models.routed import upcycle
from consilience.training.routed import PairTraining, pair_loss, train_on_pairs
from tests.models.tiny import write_bert

PAIRS = {
    "law": [(f"w{i} w{i + 1}", f"w{i} w{i + 2}") for i in range(6)],
    "health": [(f"w{50 + i}", f"w{60 + i} w3") for i in range(6)],
}
SETTINGS = PairTraining(steps=4, batch=3, learning_rate=1e-3)


@pytest.fixture
def routed(tmp_path):
    write_bert(tmp_path / "m")
    return lambda: upcycle(load_encoder(tmp_path / "m"), list(PAIRS))


def test_the_two_sided_loss_is_cross_entropy_both_ways():
    draw = torch.Generator().manual_seed(0)
    a, b = (torch.nn.functional.normalize(torch.randn(5, 8, generator=draw), dim=1) for _ in range(2))
    logits, own = 7.0 * a @ b.T, torch.arange(5)
    both = [torch.nn.functional.cross_entropy(scores, own) for scores in (logits, logits.T)]
    assert pair_loss(3 * a, 2 * b, scale=7.0).item() == pytest.approx((both[0] + both[1]).item() / 2, rel=1e-6)
    assert pair_loss(a, b, scale=7.0, kind="mnr").item() == pytest.approx(both[0].item(), rel=1e-6)


def test_doubled_texts_find_their_first_copy():
    a = torch.eye(3)[[0, 1, 1]]
    logits, targets = 20.0 * a @ a.T, torch.tensor([0, 1, 1])
    assert pair_loss(a, a).item() == pytest.approx(torch.nn.functional.cross_entropy(logits, targets).item(), rel=1e-6)


def test_the_same_seed_gives_the_same_weights_and_another_does_not(routed):
    made = []
    for seed in (0, 0, 1):
        encoder = routed()
        state = train_on_pairs(encoder, PAIRS, SETTINGS, seed=seed)
        assert state.losses[-1] < state.losses[0]
        made.append({name: value.detach().clone() for name, value in encoder.parameters().items()})
    assert all(torch.equal(made[0][name], made[1][name]) for name in made[0])
    assert not all(torch.equal(made[0][name], made[2][name]) for name in made[0])


def test_a_stopped_run_goes_on_to_the_same_weights(routed, tmp_path):
    whole, parts = routed(), routed()
    train_on_pairs(whole, PAIRS, SETTINGS)

    calls = []

    def stop():
        calls.append(1)
        if len(calls) == 2:
            raise CancelledError("stopped")

    kept = {"state_file": tmp_path / "state", "state_every": 1}
    with pytest.raises(CancelledError):
        train_on_pairs(parts, PAIRS, SETTINGS, check=stop, **kept)
    again = routed()
    assert train_on_pairs(again, PAIRS, SETTINGS, check=lambda: calls.append(1), **kept).step == 4
    assert len(calls) == 2 + 2  # the first two steps are not repeated
    assert all(torch.equal(value, again.parameters()[name]) for name, value in whole.parameters().items())


def test_wrong_data_are_named_before_the_first_step(routed):
    with pytest.raises(DataError, match=r"domains \['law'\] are not the experts"):
        train_on_pairs(routed(), {"law": PAIRS["law"]}, SETTINGS)
    with pytest.raises(DataError, match=r"(?s)law: 6 pairs, a batch takes 9.*health: 6 pairs"):
        train_on_pairs(routed(), PAIRS, PairTraining(batch=9))
    with pytest.raises(RequestError, match="loss 'x' is unknown"):
        pair_loss(torch.eye(2), torch.eye(2), kind="x")
    with pytest.raises(DataError, match="at least two"):
        pair_loss(torch.eye(1), torch.eye(1))
