"""Methods that drop by rank, by band and by variance: what is kept, how often, and what they do at the edges."""

from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import load_file

from consilience.errors import NonFiniteError, RecipeError
from consilience.merging.kernels import row_kernels
from consilience.merging.memory import merge_state_dicts
from consilience.merging.sparsify_ranked import keep_probabilities
from tests.merging.laws import make_models, same_bytes

DELLA = Path(__file__).parents[1] / "golden/cases/della/mergekit_default_eps.safetensors"


def merge(method, deltas, **parameters):
    """Merge experts given by their task vectors; the base is zero."""
    named = {f"e{i}": {"w": np.asarray(d, np.float32)} for i, d in enumerate(deltas)}
    base = {"w": np.zeros_like(named["e0"]["w"])}
    return merge_state_dicts(method, base, named, **parameters)["w"]


def test_probabilities_are_the_published_ones():
    tensors = load_file(DELLA)
    names = [name for name in tensors if name.startswith("aux.keep_prob.expert0.")]
    assert names
    for name in names:
        rest = name.removeprefix("aux.keep_prob.expert0.")
        delta = tensors[f"expert0.{rest}"] - tensors[f"base.{rest}"]
        row = delta.shape[-1]
        ranks = np.empty(delta.size, np.uint32)
        row_kernels().rank_rows(delta.reshape(-1), row, ranks)
        assert keep_probabilities(0.5, 0.15, row)[ranks] == pytest.approx(tensors[name].reshape(-1), abs=1e-6)


def test_share_kept_follows_the_rank():
    rows, row = 20_000, 50
    delta = np.tile(np.arange(1, row + 1, dtype=np.float32), (rows, 1))
    merged = merge("della", [delta], density=0.4, epsilon=0.3, rescale="none", seed=5)
    wanted = keep_probabilities(0.4, 0.3, row)
    assert (np.abs((merged > 0).mean(axis=0) - wanted) < 4.5 * np.sqrt(wanted * (1 - wanted) / rows)).all()
    small = np.linspace(-1, 1, row).astype(np.float32)
    drawn = [merge("della_linear", [small], density=0.4, epsilon=0.3, seed=s) for s in range(200)]
    ranks = np.empty(row, np.uint32)
    row_kernels().rank_rows(small, row, ranks)
    kept = wanted[ranks]
    error = np.abs(small) * np.sqrt((1 - kept) / kept / 200)
    assert (np.abs(np.mean(drawn, axis=0) - small) <= 4.5 * error + 1e-6).all()


def test_l1_restores_the_sum_of_magnitudes():
    delta = np.random.default_rng(0).normal(size=(70, 90)).astype(np.float32)
    merged = merge("della_linear", [delta], density=0.3, epsilon=0.1, rescale="l1")
    assert np.abs(merged).sum() == pytest.approx(np.abs(delta).sum(), rel=1e-5)
    kept = merged != 0
    assert np.ptp(merged[kept] / delta[kept]) < 1e-5


def test_della_at_the_edges():
    x = [1.0, -2.0, 3.0]
    assert merge("della", [x], density=1.0).tolist() == x
    assert merge("della", [x], density=0.0).tolist() == [0, 0, 0]
    assert set(merge("della", [np.full((50, 1), 2.0)], density=0.5).ravel().tolist()) == {0.0, 4.0}
    assert merge("della", [np.zeros((3, 4))] * 2, rescale="l1").tolist() == np.zeros((3, 4)).tolist()
    for density, epsilon in ((0.1, 0.15), (0.95, 0.1), (0.2, 0.2)):
        with pytest.raises(RecipeError, match="epsilon: density"):
            merge("della", [x], density=density, epsilon=epsilon)


VALUES = [[9, -8, 7, 6, 5], [-1, 2, -3, 4, 5]]


@pytest.mark.parametrize(
    ("definition", "kept"),
    [
        ("official", [[0, -8, 7, 0, 0], [0, 0, -3, 4, 0]]),
        ("keep_first", [[0, -8, 0, 0, 0], [0, 0, 0, 4, 0]]),
        ("paper", [[0, 0, 7, 6, 0], [0, 0, 0, 0, 0]]),
        ("mergekit", [[0, 0, 7, 6, 5], [0, 0, 0, 0, 5]]),
    ],
)
def test_definitions_of_breadcrumbs(definition, kept):
    merged = merge("breadcrumbs", [VALUES], density=0.4, gamma=0.2, lambda_=1.0, definition=definition)
    assert merged.tolist() == kept


def test_breadcrumbs_of_equals_keeps_the_lowest_index():
    ones = np.ones(10, np.float32)
    for definition in ("official", "mergekit"):
        merged = merge("breadcrumbs", [ones], density=0.5, gamma=0.2, lambda_=1.0, definition=definition)
        assert merged.tolist() == [1] * 5 + [0] * 5, definition
    coarse = [3, 3, 2, 2, 2, 1, 1, 1, 3, 0]
    merged = merge("breadcrumbs", [coarse], density=0.4, gamma=0.2, lambda_=1.0, definition="mergekit")
    assert merged.tolist() == [3, 0, 2, 2, 2, 0, 0, 0, 0, 0]


def test_band_of_a_tensor_is_that_of_a_sort():
    rng = np.random.default_rng(2)
    for size, density, gamma in ((1000, 0.3, 0.05), (5000, 0.9, 0.3), (77, 0.01, 0.5), (9000, 0.5, 0.0)):
        delta = rng.normal(size=size).astype(np.float32)
        keep = max(int(size * density), 1)
        top = min(int(size * gamma), size - keep)
        order = np.argsort(-np.abs(delta))
        wanted = np.zeros(size, np.float32)
        chosen = order[top : top + keep]
        wanted[chosen] = delta[chosen]
        values = {"density": density, "gamma": gamma, "lambda_": 1.0, "definition": "mergekit"}
        assert merge("breadcrumbs", [delta], chunk=4096, **values).tolist() == wanted.tolist()


def test_breadcrumbs_on_small_tensors():
    bias = [3.0, -1.0, 2.0]
    one = merge("breadcrumbs", [bias], density=0.1, gamma=0.01, lambda_=1.0, definition="mergekit")
    assert one.tolist() == [3, 0, 0]
    assert merge("breadcrumbs", [bias], density=0.1, gamma=0.4, lambda_=1.0, definition="paper").tolist() == [0, 0, 2]
    with pytest.warns(UserWarning, match="tensor 'w' are too short"):
        assert merge("breadcrumbs", [bias], density=0.1, lambda_=1.0).tolist() == [0, 0, 0]
    assert merge("breadcrumbs", [7.0], density=0.1, gamma=0.5, lambda_=1.0).tolist() == 7.0
    assert merge("breadcrumbs", [bias], density=1.0, gamma=0.0, lambda_=1.0).tolist() == bias
    assert merge("breadcrumbs", [bias], density=1.0, gamma=0.9, lambda_=1.0, definition="mergekit").tolist() == bias
    assert merge("breadcrumbs", [bias], density=0.8, gamma=0.7, lambda_=1.0).tolist() == [0, -1, 0]
    assert merge("breadcrumbs", [bias], density=0.0, lambda_=1.0, definition="paper").tolist() == [0, 0, 0]
    with pytest.raises(RecipeError, match="gamma"):
        merge("breadcrumbs", [bias], gamma=-0.1)


def test_breadcrumbs_ties_votes_on_what_is_left():
    merged = merge("breadcrumbs_ties", [[9, 3, 2, 1], [2, -4, 8, 0]], density=0.5, gamma=0.25, lambda_=1.0)
    assert merged.tolist() == [2, -4, 2, 0]
    mean = merge(
        "breadcrumbs_ties", [[9, 3, 2, 1], [9, 1, 4, 0]], density=0.5, gamma=0.25, lambda_=1.0, merge_function="mean"
    )
    assert mean.tolist() == [0, 2, 3, 0]


def test_sce_by_definition():
    rng = np.random.default_rng(1)
    deltas = rng.normal(size=(3, 6, 50)).astype(np.float32) * np.float32([[[1]], [[2]], [[0.5]]])
    for share in (1.0, 0.25):
        variance = deltas.astype(np.float64).var(axis=0)
        limit = np.sort(variance, axis=None)[::-1][int(share * 300) - 1]
        chosen = np.where(variance >= limit, deltas, 0).astype(np.float64)
        weights = (chosen**2).mean(axis=(1, 2))
        weights /= weights.sum()
        agrees = np.sign(chosen) == np.where(chosen.sum(axis=0) >= 0, 1, -1)
        total = (agrees * weights[:, None, None]).sum(axis=0)
        wanted = (agrees * weights[:, None, None] * chosen).sum(axis=0) / np.where(total > 0, total, 1)
        assert merge("sce", deltas, select_topk=share) == pytest.approx(wanted, rel=1e-5, abs=1e-7), share


def test_sce_at_the_edges():
    a, b = [1.0, 5.0, 1.0, 1.0], [2.0, 5.0, 2.0, 2.0]
    first = merge("sce", [a, b], select_topk=0.7)  # 2 of the 3 positions that vary, the lowest first
    assert first.tolist() == pytest.approx([(1 * 2 + 4 * 4) / 10, 0, 1.8, 0])
    one = merge("sce", [a, b], select_topk=0.1)
    assert one.tolist() == pytest.approx([1.8, 0, 0, 0])
    assert merge("sce", [a, a], select_topk=0.5).tolist() == [0, 0, 0, 0]
    assert merge("sce", [a, a]).tolist() == a
    assert merge("sce", [a, b], select_topk=0.0).tolist() == [0, 0, 0, 0]
    assert merge("sce", [[0.0, 0.0]] * 2).tolist() == [0, 0]
    tiny = np.float32([a, b]) * np.float32(2.0**-20)
    assert merge("sce", tiny).tolist() == (merge("sce", [a, b]) * 2.0**-20).tolist()
    even = merge("sce", tiny, guard="absolute") * 2.0**20
    assert even.tolist() == pytest.approx([1.5, 5, 1.5, 1.5])
    with pytest.raises(RecipeError, match="at least 2"):
        merge("sce", [a])


@pytest.mark.filterwarnings("ignore:breadcrumbs")
@pytest.mark.parametrize(
    ("method", "values"),
    [
        ("della", {"rescale": "l1"}),
        ("della", {"rescale": "inverse"}),
        ("breadcrumbs", {"definition": "official"}),
        ("breadcrumbs", {"definition": "paper"}),
        ("breadcrumbs_ties", {"definition": "mergekit", "density": 0.7, "gamma": 0.2}),
        ("sce", {"select_topk": 0.3}),
    ],
)
def test_chunks_and_broken_numbers(method, values):
    base, models = make_models({"w": (90, 100), "v": (5000,), "c": (9, 3, 200)}, ["a", "b"], 3, "bfloat16")
    whole = merge_state_dicts(method, base, models, chunk=1 << 20, **values)
    for chunk in (1, 4096, 8192):
        assert same_bytes(merge_state_dicts(method, base, models, chunk=chunk, **values), whole), chunk
    for broken in (float("nan"), float("inf")):
        models["b"]["w"][50, 7] = broken
        with pytest.raises(NonFiniteError, match="'w': model 'b' holds"):
            merge_state_dicts(method, base, models, **values)
