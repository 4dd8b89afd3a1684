"""Nearswap, RAM, RAM+, Arcee Fusion and delta-guided fusion: their formulas, written out, and their edges."""

import numpy as np
import pytest

from consilience.errors import RecipeError
from consilience.merging.memory import merge_state_dicts
from tests.merging.laws import make_models, same_bytes


def normal(seed, shape=(40, 30), scale=1.0):
    return (scale * np.random.default_rng(seed).normal(size=shape)).astype(np.float32)


def merged(method, base, *deltas, **parameters):
    """Merge experts given by their task vectors."""
    experts = {f"e{i}": {"w": base + d} for i, d in enumerate(deltas)}
    return merge_state_dicts(method, {"w": base}, experts, **parameters)["w"]


def test_nearswap_is_the_published_formula():
    base, expert = normal(0), normal(1)
    for t in (0.5, 1e-3, 1e-7):
        weight = np.clip(t / np.maximum(np.abs(base.astype(float) - expert), 1e-6), 0, 1)
        ours = merge_state_dicts("nearswap", {"w": base}, {"a": {"w": expert}}, t=t)["w"]
        assert ours == pytest.approx(weight * expert + (1 - weight) * base, rel=1e-6, abs=1e-7)


def test_nearswap_gives_the_expert_where_it_is_near():
    base = normal(0)
    expert = base + np.float32(0.25) * np.sign(normal(1))
    assert (merge_state_dicts("nearswap", {"w": base}, {"a": {"w": expert}}, t=0.5)["w"] == expert).all()
    with pytest.raises(RecipeError, match="between 0 and inf"):
        merge_state_dicts("nearswap", {"w": base}, {"a": {"w": expert}}, t=-0.1)


def changes(seed, experts=3, share=0.3):
    """Sparse task vectors: a part of each entry's experts changed it."""
    rng = np.random.default_rng(seed)
    return [(rng.normal(size=(50, 40)) * (rng.random((50, 40)) < share)).astype(np.float32) for _ in range(experts)]


def test_ram_takes_changes_of_one_expert_whole_and_averages_the_others():
    deltas, base = changes(0), np.zeros((50, 40), np.float32)
    ours = merged("ram", base, *deltas, epsilon=0.1)
    stack = np.stack(deltas)
    counted = np.abs(stack) > np.float32(0.1)
    expected = np.where(counted, stack, 0).sum(0) / np.maximum(counted.sum(0), 1)
    assert ours == pytest.approx(expected, abs=1e-6)
    alone = counted.sum(0) == 1
    assert (ours[alone] == np.where(counted, stack, 0).sum(0)[alone]).all() and alone.any()


def test_ram_of_dense_changes_is_their_mean():
    deltas = [normal(seed, scale=0.5) + np.float32(2) for seed in range(4)]
    ours = merged("ram", np.zeros_like(deltas[0]), *deltas)
    assert ours == pytest.approx(np.mean(deltas, axis=0), abs=1e-6)


@pytest.mark.parametrize("alpha", [0.1, 10.0])
def test_ramplus_strengthens_by_shared_over_alone(alpha):
    deltas, base = changes(1), np.zeros((50, 40), np.float32)
    ours = merged("ramplus_tl", base, *deltas, r=0.4, alpha=alpha, epsilon=1e-5)
    stack = np.stack(deltas)
    counted = np.abs(stack) > 1e-5
    alone = counted & (counted.sum(0) == 1)
    shared = counted & (counted.sum(0) > 1)
    scales = 1 + 0.4 * np.clip(shared.sum((1, 2)) / alone.sum((1, 2)), 0, alpha)
    expected = np.where(alone, stack * scales[:, None, None], 0).sum(0)
    expected += np.where(shared, stack, 0).sum(0) / np.maximum(shared.sum(0), 1)
    assert ours == pytest.approx(expected, abs=1e-6)
    assert (scales > 1).all() and (scales < 1 + 0.4 * alpha).all() == (alpha > 1)


def test_ramplus_without_overlap_or_without_own_changes_is_ram():
    apart = np.eye(3, dtype=np.float32)
    base = np.zeros(3, np.float32)
    assert (merged("ramplus_tl", base, *apart) == merged("ram", base, *apart)).all()
    together = np.ones((2, 3), np.float32)
    assert (merged("ramplus_tl", base, *together, r=1.0, alpha=9.0) == 1).all()


def fused(base, expert):
    """Arcee Fusion in plain NumPy."""

    def probabilities(rows):
        powers = np.exp(rows - rows.max(-1, keepdims=True))
        return powers / powers.sum(-1, keepdims=True) + 1e-8

    p, q = probabilities(expert.astype(float)), probabilities(base.astype(float))
    importance = (np.abs(expert.astype(float) - base) * (p * np.log(p / q)).sum(-1, keepdims=True)).astype(np.float32)
    ordered = np.sort(importance.ravel())
    first, median, third = (float(ordered[int(q * (ordered.size - 1))]) for q in (0.25, 0.5, 0.75))
    return np.where(importance >= np.float32(median + 1.5 * (third - first)), expert, base)


@pytest.mark.parametrize("shape", [(60, 50), (400,), (3, 4, 5), (5, 1), (1, 3), (4,), (3,), (2,), (1,), ()])
def test_arcee_fusion_takes_the_outliers(shape):
    base = normal(2, shape)
    expert = base + normal(3, shape, 0.2)
    ours = merge_state_dicts("arcee_fusion", {"w": base}, {"a": {"w": expert}})["w"]
    assert (ours == fused(base, expert)).all()


def test_arcee_fusion_takes_few_entries_and_those_exactly():
    base = normal(4, (200, 100))
    expert = base + normal(5, (200, 100), 0.1)
    ours = merge_state_dicts("arcee_fusion", {"w": base}, {"a": {"w": expert}})["w"]
    taken = ours != base
    assert 0.02 < taken.mean() < 0.2 and (ours[taken] == expert[taken]).all()


def test_delta_guided_is_the_documented_formula():
    deltas, base = [normal(seed, scale=0.1 * (seed + 1)) for seed in range(3)], normal(9)
    stack = np.stack([(base + d).astype(float) - base for d in deltas])
    size = np.abs(stack)
    assert merged("delta_guided", base, *deltas) == pytest.approx(base + (size / size.sum(0) * stack).sum(0), abs=1e-6)
    inverse = (1 / size / (1 / size).sum(0) * stack).sum(0)
    assert merged("delta_guided", base, *deltas, inverse=True) == pytest.approx(base + inverse, abs=1e-6)
    lengths = np.linalg.norm(stack.reshape(3, -1), axis=1)
    for flag, share in ((False, lengths), (True, 1 / lengths)):
        expected = base + np.tensordot(share / share.sum(), stack, 1)
        ours = merged("delta_guided", base, *deltas, granularity="tensor", inverse=flag)
        assert ours == pytest.approx(expected, abs=1e-6)


@pytest.mark.parametrize("granularity", ["element", "tensor"])
def test_delta_guided_where_experts_did_not_move(granularity):
    base, moved = normal(0), normal(1)
    still = np.zeros_like(base)
    assert (merged("delta_guided", base, still, still, granularity=granularity) == base).all()
    assert merged("delta_guided", base, moved, still, granularity=granularity) == pytest.approx(base + moved, abs=1e-6)
    assert (merged("delta_guided", base, moved, still, granularity=granularity, inverse=True) == base).all()


def test_delta_guided_weights_do_not_underflow():
    base = np.zeros(3, np.float32)
    one, two = np.float32([1e-30, 3e-30, 0]), np.float32([3e-30, 1e-30, 0])
    assert merged("delta_guided", base, one, two) == pytest.approx([2.5e-30, 2.5e-30, 0], rel=1e-5)


@pytest.mark.parametrize("method", ["ram", "ramplus_tl", "delta_guided"])
def test_one_expert_gives_that_expert(method):
    base, models = make_models({"w": (30, 20), "v": (7,)}, ["a"], 3, spread=1.0)
    values = {} if method == "delta_guided" else {"epsilon": 0.0}
    assert same_bytes(merge_state_dicts(method, base, models, **values), models["a"])
