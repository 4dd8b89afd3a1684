"""PCB: streamed, by selection, against its definition by sorting; its kernels; its edges."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from consilience.errors import NonFiniteError, RecipeError, WorkError
from consilience.merging.kernels import COMPETITION_NAMES, competition_compiled, competition_reference
from consilience.merging.kernels.competition_reference import SERIES
from consilience.merging.memory import merge_state_dicts
from tests.merging.laws import make_models, same_bytes
from tests.merging.test_kernels import numbers

pytestmark = pytest.mark.filterwarnings("ignore:pcb:UserWarning")

SCALES = ("balanced", "intra", "inter")


def merge(deltas, **parameters):
    """Merge experts given by their task vectors over one tensor; the base is zero."""
    named = {f"e{i}": {"w": np.asarray(d, np.float32)} for i, d in enumerate(deltas)}
    return merge_state_dicts("pcb", {"w": np.zeros_like(named["e0"]["w"])}, named, **parameters)["w"]


def between(values, low, high):
    return (np.clip(values, low, high) - low) / (high - low) if high > low else np.ones_like(values)


def by_sorting(deltas, ratio=0.1, clamp=1e-4, scale=1.0, inter="tanh", score="balanced"):
    """The definition, over flat task vectors held in memory: merged task vector and coefficients."""
    deltas = np.asarray(deltas, np.float64)
    count, size = deltas.shape
    ordered = np.sort(np.abs(deltas), axis=1)
    low = ordered[:, int(size * clamp)]
    high = ordered[:, max(int(size * (1 - clamp) - 1), int(size * clamp))]
    magnitudes = np.clip(np.abs(deltas), low[:, None], high[:, None])
    places = np.stack([between(m, a, b) for m, a, b in zip(magnitudes, low, high, strict=True)])
    total = deltas.sum(axis=0) if inter == "tanh" else (np.sign(deltas) * places).sum(axis=0)
    intra = np.exp(count * (places**2 - 1)) if score != "inter" else 1.0
    agreement = np.tanh(deltas * total) if score != "intra" else 1.0
    scores = (intra * agreement).astype(np.float32).astype(np.float64)
    limits = np.sort(scores, axis=1)[:, min(int(size * (1 - ratio)), max(size - 2, 0))]
    coefficients = np.stack(
        [
            np.where(s > a, between(s, a, s.max()), 0) if s.max() > a else (s >= s.max()).astype(float)
            for s, a in zip(scores, limits, strict=True)
        ]
    )
    merged = (scale * np.sign(deltas) * magnitudes * coefficients).sum(axis=0)
    return merged / np.maximum(coefficients.sum(axis=0), 1e-12), coefficients


@settings(deadline=None, max_examples=40, derandomize=True)  # scores within one rounding of the limit may go either way
@given(
    st.integers(1, 4),
    st.integers(2, 60),
    st.integers(0, 2**31),
    st.floats(0.01, 1.0),
    st.floats(0.0, 0.5),
    st.sampled_from(["tanh", "normalized"]),
    st.sampled_from(SCALES),
    st.booleans(),
)
def test_streamed_equals_sorted(experts, size, seed, ratio, clamp, inter, score, sparse):
    rng = np.random.default_rng(seed)
    deltas = (rng.normal(size=(experts, size)) * 1e-2).astype(np.float32)
    if sparse:  # many exact zeros, as with adapters in few layers
        deltas *= rng.random(deltas.shape) < 0.3
    deltas[:, 0] = np.float32(0.02)
    cut = size // 2
    base = {"b": np.zeros(size - cut, np.float32), "a": np.zeros(cut, np.float32)}
    models = {f"e{i}": {"a": d[:cut], "b": d[cut:]} for i, d in enumerate(deltas)}
    values = {"pcb_ratio": ratio, "clamp_ratio": clamp, "inter": inter, "score": score}
    wanted, coefficients = by_sorting(deltas, ratio, clamp, 1.0, inter, score)
    merged = merge_state_dicts("pcb", base, models, **values)
    assert np.concatenate([merged["a"], merged["b"]]) == pytest.approx(wanted, rel=1e-5, abs=1e-7)
    for name, expected in zip(models, coefficients, strict=True):
        found = merge_state_dicts("pcb", base, models, coefficients=name, **values)
        assert np.concatenate([found["a"], found["b"]]) == pytest.approx(expected, rel=1e-5, abs=1e-6)


def test_a_larger_model_with_lambdas():
    deltas = (np.random.default_rng(0).normal(size=(3, 40_000)) * 1e-3).astype(np.float32)
    wanted, coefficients = by_sorting(deltas, 0.2, 0.01, np.array([[0.8], [1.0], [1.3]]))
    merged = merge(deltas, pcb_ratio=0.2, clamp_ratio=0.01, lambda_=[0.8, 1.0, 1.3], chunk=4096)
    assert np.abs(merged - wanted).max() < 1e-9
    assert (coefficients > 0).sum(axis=1).tolist() == [7999] * 3
    assert (merged == 0).mean() == pytest.approx((coefficients.sum(axis=0) == 0).mean())


def test_kept_share_is_the_same_for_random_scores():
    deltas = (np.random.default_rng(1).normal(size=(2, 20_000)) * 1e-3).astype(np.float32)
    named = {"a": {"w": deltas[0]}, "b": {"w": deltas[1]}}
    base = {"w": np.zeros(20_000, np.float32)}
    kept = {}
    for score in ("balanced", "random"):
        for seed in (0, 1):
            found = merge_state_dicts("pcb", base, named, score=score, seed=seed, coefficients="a")["w"]
            kept[score, seed] = found > 0
            assert found.max() == 1 and found.min() == 0
            assert kept[score, seed].sum() == pytest.approx(2000, abs=2), score  # random scores may be equal
    assert (kept["balanced", 0] == kept["balanced", 1]).all()
    assert (kept["random", 0] & kept["random", 1]).sum() == pytest.approx(200, abs=60)


def test_entries_that_disagree_with_the_sum_fall_first():
    deltas = np.float32([[0.02, 0.02, 0.02, 0.02], [0.02, 0.03, -0.05, -0.06]])
    first = {"a": {"w": deltas[0]}, "b": {"w": deltas[1]}}
    found = merge_state_dicts("pcb", {"w": np.zeros(4, np.float32)}, first, pcb_ratio=0.5, coefficients="a")["w"]
    assert found[2:].tolist() == [0, 0] and found[1] == 1


def test_one_expert_is_trimmed():
    delta = np.float32([1, -2, 3, -4, 5, 6, 7, 8, 9, 10]) / 100
    assert merge([delta], pcb_ratio=0.3, clamp_ratio=0.0)[:8].tolist() == [0] * 8
    everything = merge([delta], pcb_ratio=1.0, clamp_ratio=0.0)
    assert everything.tolist() == pytest.approx([0, *delta[1:].tolist()])  # all but the smallest score


def test_changes_of_one_size():
    ones = np.float32([1, -1, 1, 1])
    assert merge([ones], pcb_ratio=0.5).tolist() == ones.tolist()  # all scores equal the largest
    assert merge([ones, ones], pcb_ratio=0.5, lambda_=0.5).tolist() == (ones / 2).tolist()
    assert merge([ones, -ones]).tolist() == [0, 0, 0, 0]  # scores of 0 all over
    assert merge([[3.0]]).tolist() == [3.0]
    assert merge([[3.0, 1.0]], pcb_ratio=0.9, clamp_ratio=0.0).tolist() == [3.0, 0.0]


def test_mostly_zeros():
    delta = np.zeros(1000, np.float32)
    delta[:20] = np.linspace(0.01, 0.02, 20)
    other = np.roll(delta, 10)
    wanted, _ = by_sorting([delta, other])
    assert merge([delta, other]) == pytest.approx(wanted, rel=1e-5, abs=1e-8)
    assert (merge([delta, other]) != 0).sum() == 30  # the limit is 0: all that agree stay
    with pytest.warns(UserWarning, match=r"expert 1 of 2.*smaller share.*clamp_ratio 0.05"):
        cut = merge([delta, np.full(1000, 0.1)], clamp_ratio=0.05)
    assert np.isfinite(cut).all()


def test_few_weights_keep_one_entry_with_a_warning():
    with pytest.warns(UserWarning, match="pcb_ratio 0.1 of 5 weights is less than two"):
        merged = merge([[0.01, 0.05, 0.02, 0.03, 0.04]], clamp_ratio=0.0)
    assert merged.tolist() == pytest.approx([0, 0.05, 0, 0, 0])


def test_many_experts_do_not_overflow():
    rng = np.random.default_rng(2)
    deltas = (rng.normal(size=(100, 50)) * 1e-2).astype(np.float32)
    merged = merge(deltas, pcb_ratio=0.5)
    assert np.isfinite(merged).all() and (merged != 0).any()


def test_refusals():
    with pytest.raises(RecipeError, match="pcb_ratio: 0"):
        merge([[1.0, 2.0]], pcb_ratio=0.0)
    with pytest.raises(RecipeError, match="pcb_ratio"):
        merge([[1.0, 2.0]], pcb_ratio=1.1)
    with pytest.raises(RecipeError, match="clamp_ratio"):
        merge([[1.0, 2.0]], clamp_ratio=0.6)
    with pytest.raises(RecipeError, match="inter: 'softmax'"):
        merge([[1.0, 2.0]], inter="softmax")
    with pytest.raises(RecipeError, match="coefficients: unknown expert 'e7'"):
        merge([[1.0, 2.0]], coefficients="e7")
    with pytest.raises(WorkError, match=r"expert 2 of 2 \(by name\) equals the base in every tensor"):
        merge([[1.0, 2.0], [0.0, 0.0]])


def test_integers_and_tensors_without_changes_come_from_the_base():
    base = {"ids": np.arange(4), "still": np.float32([1, 2]), "w": np.zeros(50, np.float32)}
    models = {
        name: {**base, "w": np.random.default_rng(seed).normal(size=50).astype(np.float32)}
        for seed, name in enumerate("ab")
    }
    merged = merge_state_dicts("pcb", base, models)
    assert merged["ids"].tolist() == [0, 1, 2, 3] and merged["still"].tolist() == [1, 2]
    assert (merged["w"] != 0).any()
    maps = merge_state_dicts("pcb", base, models, coefficients="a")
    assert maps["ids"].tolist() == [0, 1, 2, 3] and maps["still"].tolist() == [0, 0]


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float64"])
@pytest.mark.parametrize("score", [*SCALES, "random"])
def test_chunks_never_change_a_byte_and_broken_numbers_are_named(dtype, score):
    base, models = make_models({"w": (90, 100), "v": (5000,)}, ["a", "b"], 3, dtype)
    whole = merge_state_dicts("pcb", base, models, chunk=1 << 20, score=score)
    for chunk in (1, 8192):
        assert same_bytes(merge_state_dicts("pcb", base, models, chunk=chunk, score=score), whole), chunk
    for broken in (float("nan"), float("inf")):
        models["b"]["w"][50, 7] = broken
        with pytest.raises(NonFiniteError, match="'w': model 'b' holds"), np.errstate(all="ignore"):
            merge_state_dicts("pcb", base, models, score=score)


def run_both(name, make):
    """Call both forms on fresh arguments; results and every array must agree to the byte."""
    results = []
    for module in (competition_reference, competition_compiled):
        arguments = make()
        getattr(module, name)(*arguments)
        results.append([a.tobytes() for a in arguments if isinstance(a, np.ndarray)])
    assert results[0] == results[1], name


@settings(deadline=None, max_examples=40)
@given(
    st.sampled_from([1, 2, 7, 1000, 1024, 1025, 5000]),
    st.sampled_from([np.float32, np.float64]),
    st.integers(0, 2**31),
    st.integers(1, 5),
    st.booleans(),
)
def test_compiled_kernels_give_the_bits_of_the_reference(size, dtype, seed, experts, coarse):
    deltas = numbers(seed, (experts, size), dtype, coarse=coarse)
    sizes = np.sort(np.abs(deltas.astype(np.float64)), axis=1)
    low, high = sizes[:, size // 4].copy(), sizes[:, -1].copy()
    for intra, inter in ((True, 0), (True, 1), (True, 2), (False, 1), (False, 2), (False, 0)):
        run_both("competition_scores", lambda a=intra, e=inter: (deltas, low, high, a, e, np.empty_like(deltas, "f4")))
    scores = deltas.astype(np.float32)
    ordered = np.sort(scores.astype(np.float64), axis=1)
    for limits in (ordered[:, size // 2], ordered[:, -1]):
        run_both("coefficients", lambda c=limits: (scores, c.copy(), ordered[:, -1].copy(), np.empty_like(deltas)))
    shares = np.random.default_rng(seed).random(deltas.shape).astype(dtype)
    shares[shares < 0.5] = 0
    bounds, scale = (low.astype(dtype), high.astype(dtype)), np.linspace(0.5, 2, experts).astype(dtype)
    run_both("balanced_sum", lambda: (deltas, shares, *bounds, scale, np.empty(size, dtype)))


def test_every_kernel_has_both_forms():
    assert set(COMPETITION_NAMES) == set(competition_compiled.__all__)
    assert all(callable(getattr(competition_reference, name)) for name in COMPETITION_NAMES)


@pytest.mark.parametrize("module", [competition_reference, competition_compiled])
def test_hyperbolic_tangent_is_right_at_every_size(module):
    sizes = np.concatenate([10.0 ** np.linspace(-150, 1.5, 4000), SERIES + np.linspace(-1e-3, 1e-3, 1001)])
    x = np.concatenate([sizes, -sizes])
    wide = np.stack([np.sqrt(np.abs(x)), np.sign(x) * np.sqrt(np.abs(x)) - np.sqrt(np.abs(x))])
    out = np.empty((2, x.size), np.float32)  # the first row times the sum of both is x
    module.competition_scores(wide, np.zeros(2), np.ones(2), False, 1, out)
    assert out[0] == pytest.approx(np.tanh(x), rel=1e-7, abs=1e-44)
