"""WIDEN against its steps written out, and where ranks, zero columns and small changes are delicate."""

import math

import numpy as np
import pytest

from consilience.errors import RecipeError
from consilience.merging.memory import merge_state_dicts
from tests.merging.laws import make_models, same_bytes


def scores(significance, ratio, calibrated):
    powers = np.exp(significance - significance.max(0))
    found = powers / powers.sum(0)
    found[significance > ratio * significance.mean(1, keepdims=True) * (1 + 1e-12)] = calibrated
    return found


def ranks(changes):
    order = np.argsort(changes, axis=1, kind="stable")
    return np.argsort(order, axis=1, kind="stable") / changes.shape[1]


def widened(base, experts, ratio=1.0, calibrated=1.0, ranking=True):
    """WIDEN of matrices (out, in), in plain NumPy."""
    base = base.astype(float)
    experts = [e.astype(float) for e in experts]
    lengths = [np.linalg.norm(w, axis=0) for w in (base, *experts)]
    units = [w / n for w, n in zip((base, *experts), lengths, strict=True)]
    longer = np.stack([np.abs(n - lengths[0]) for n in lengths[1:]])
    turned = np.stack([((u - units[0]) ** 2).sum(0) / 2 for u in units[1:]])
    prepare = ranks if ranking else np.asarray
    score = (scores(prepare(longer), ratio, calibrated) + scores(prepare(turned), ratio, calibrated)) / 2
    return base + sum(s * (e - base) for s, e in zip(score, experts, strict=True))


def models(seed, shape=(20, 31), experts=3, spread=0.05):
    rng = np.random.default_rng(seed)
    base = rng.normal(size=shape).astype(np.float32)
    sizes = spread * 10.0 ** np.arange(experts)
    return base, [(base + s * rng.normal(size=shape)).astype(np.float32) for s in sizes]


def merge(base, experts, name="w", **parameters):
    named = {f"e{i}": {name: e} for i, e in enumerate(experts)}
    return merge_state_dicts("widen", {name: base}, named, **parameters)[name]


@pytest.mark.parametrize("ranking", [True, False])
@pytest.mark.parametrize(("ratio", "calibrated"), [(1.0, 1.0), (1.5, 0.8), (1e9, 1.0)])
def test_matrices_follow_the_published_steps(ranking, ratio, calibrated):
    base, experts = models(0)
    ours = merge(base, experts, above_average_value_ratio=ratio, score_calibration_value=calibrated, ranking=ranking)
    assert ours == pytest.approx(widened(base, experts, ratio, calibrated, ranking), abs=2e-6)


def test_embeddings_are_transposed_and_heads_are_not():
    base, experts = models(1)
    by_token = widened(base.T, [e.T for e in experts]).T
    assert merge(base, experts, "model.embed_tokens.weight") == pytest.approx(by_token, abs=2e-6)
    assert merge(base, experts, "table.weight", embedding_patterns="table") == pytest.approx(by_token, abs=2e-6)
    assert merge(base, experts, "lm_head.weight") == pytest.approx(widened(base, experts), abs=2e-6)


def test_more_axes_are_flattened_and_the_log_says_so():
    base, experts = models(2, (6, 4, 5))
    with pytest.warns(UserWarning, match="more than two axes"):
        ours = merge(base, experts)
    flat = widened(base.reshape(6, 20), [e.reshape(6, 20) for e in experts])
    assert ours == pytest.approx(flat.reshape(base.shape), abs=2e-6)


def test_vectors_are_scored_by_size_without_ranks():
    base, experts = models(3, (50,))
    deltas = np.stack([e.astype(float) - base for e in experts])
    expected = base + (scores(np.abs(deltas), 1.0, 1.0) * deltas).sum(0)
    assert merge(base, experts) == pytest.approx(expected, abs=2e-6)


def test_ranks_do_not_see_the_size_of_the_changes():
    base, (small, _, large) = models(4)
    both = merge(base.astype(np.float64), [small.astype(np.float64), large.astype(np.float64)])
    tiny = base.astype(np.float64) + (small.astype(np.float64) - base) * 1e-3
    other = merge(base.astype(np.float64), [tiny, large.astype(np.float64)])
    share = np.linalg.norm((both - base) - (other - base)) / np.linalg.norm(small.astype(np.float64) - base)
    assert 0.5 < share < 1.5  # the small expert's part, which shrank with it, had kept about its own size


def test_changes_far_below_float32_are_ranked_rightly():
    rng = np.random.default_rng(5)
    base = rng.normal(size=(30, 12))
    order = rng.permutation(12)
    turned = base + 1e-7 * (1 + order) * rng.normal(size=base.shape)  # 1 - cos near 1e-14
    found: dict = {}
    merge_state_dicts("widen", {"w": base}, {"a": {"w": turned}, "b": {"w": base}}, facts=found)
    ours = merge(base, [turned, base])
    assert np.abs(ours - widened(base, [turned, base])).max() < 1e-12
    assert 0.5 < found["w"]["mean_score"][0] < 1


def test_a_zero_column_is_no_nan():
    base, experts = models(6, (5, 4))
    base[:, 0] = 0  # new in all experts
    experts[0][:, 1] = 0  # vanished in one
    for e in (base, *experts):
        e[:, 2] = 0  # zero everywhere
    ours = merge(base, experts)
    assert np.isfinite(ours).all() and (ours[:, 2] == 0).all()


def test_one_expert_is_returned():
    base, models_ = make_models({"w": (9, 7), "v": (5,), "s": ()}, ["a"], 1, "bfloat16")
    assert same_bytes(merge_state_dicts("widen", base, models_), models_["a"])


def test_a_place_equal_to_the_mean_is_not_above_it():
    base = np.eye(5)
    rng = np.random.default_rng(7)
    experts = [base + 0.1 * rng.normal(size=(5, 5)) for _ in range(2)]
    # five columns: the middle place is 0.4 = the mean; its score stays the softmax, so few columns are calibrated
    found: dict = {}
    named = {f"e{i}": {"w": e} for i, e in enumerate(experts)}
    merge_state_dicts("widen", {"w": base}, named, score_calibration_value=0.0, facts=found)
    kept = merge_state_dicts("widen", {"w": base}, named, score_calibration_value=0.0)["w"]
    assert kept == pytest.approx(widened(base, experts, 1.0, 0.0), abs=1e-12)
    assert all(0 < mean < 0.6 for mean in found["w"]["mean_score"])


def test_negative_settings_are_refused():
    base, experts = models(0)
    with pytest.raises(RecipeError, match=r"(?s)above_average_value_ratio.*score_calibration_value"):
        merge(base, experts, score_calibration_value=-1, above_average_value_ratio=-math.pi)
