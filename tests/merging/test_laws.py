"""One property test for all methods: every declared law holds, and streamed or chunked merges give the same bytes."""

import numpy as np
import pytest
from hypothesis import given, reject, settings
from hypothesis import strategies as st

from consilience.errors import RecipeError, WorkError
from consilience.merging.memory import merge_state_dicts
from consilience.merging.method import find_method, method_names
from tests.merging.laws import CHECKS, make_models, merge, same_bytes, sample_parameters

pytestmark = pytest.mark.filterwarnings(
    "ignore:tsv:UserWarning",
    "ignore:r_tsvm:UserWarning",
    "ignore:breadcrumbs:UserWarning",
    "ignore:model_stock:UserWarning",
    "ignore:pcb:UserWarning",
    "ignore:consensus:UserWarning",
)

SHAPES = st.dictionaries(
    st.sampled_from(["a.weight", "b.weight", "layers.0.w", "layers.1.w"]),
    st.lists(st.integers(0, 9), min_size=0, max_size=3).map(tuple),
    min_size=1,
    max_size=3,
)
DTYPES = st.sampled_from(["float32", "bfloat16", "float16", "float64"])


@pytest.mark.parametrize(("method", "law"), [(m, law) for m in method_names() for law in sorted(find_method(m).laws)])
def test_declared_law_holds(method, law):
    @settings(deadline=None, max_examples=15)
    @given(SHAPES, st.integers(0, 2**31), DTYPES)
    def check(shapes, seed, dtype):
        try:
            CHECKS[law](method, shapes, seed, dtype)
        except WorkError as error:  # pcb refuses an expert without changes
            if "equals the base" not in str(error):
                raise
            reject()

    check()


@pytest.mark.parametrize("method", method_names())
def test_chunk_size_never_changes_a_byte(method):
    experts = ["a", "b", "c"][: find_method(method).max_experts or 3]
    base, models = make_models({"w": (130, 100), "v": (5000,)}, experts, 1, "bfloat16")
    values = sample_parameters(method, experts, 1)
    whole = merge(method, base, models, seed=1, chunk=1 << 20, **values)
    for chunk in (1, 4096, 8192, 12288):
        assert same_bytes(merge(method, base, models, seed=1, chunk=chunk, **values), whole), chunk


@pytest.mark.parametrize("method", method_names())
def test_degenerate_tensors(method):
    experts = ["a", "b"][: find_method(method).max_experts or 2]
    base, models = make_models({"scalar": (), "one": (1,), "empty": (0, 3), "w": (4, 5)}, experts, 2)
    base["ids"] = models["a"]["ids"] = np.arange(5)
    for model in models.values():
        model["ids"] = np.arange(5)
    merged = merge(method, base, models, **sample_parameters(method, experts, 2))
    assert {k: tuple(v.shape) for k, v in merged.items()} == {k: tuple(v.shape) for k, v in base.items()}
    assert (merged["ids"] == np.arange(5)).all()
    assert all(np.isfinite(np.asarray(v, np.float64)).all() for v in merged.values())


def test_dropped_share_and_expected_value_of_dare():
    n, density = 1_000_000, 0.3
    base, expert = {"w": np.zeros(n, np.float32)}, {"w": np.ones(n, np.float32)}
    merged = merge_state_dicts("dare_linear", base, {"a": expert}, density=density, rescale="none")["w"]
    assert abs((merged > 0).mean() - density) < 4 * (density * (1 - density) / n) ** 0.5
    small = {"w": np.linspace(-1, 1, 50).astype(np.float32)}
    zero = {"w": np.zeros(50, np.float32)}
    draws = [merge_state_dicts("dare_linear", zero, {"a": small}, density=density, seed=s)["w"] for s in range(200)]
    error = np.abs(small["w"]) * ((1 - density) / density / 200) ** 0.5
    assert (np.abs(np.mean(draws, axis=0) - small["w"]) <= 4 * error + 1e-6).all()


def test_masks_differ_between_experts_tensors_and_seeds():
    base = {"v": np.zeros(64, np.float32), "w": np.zeros(64, np.float32)}
    one = {"v": np.ones(64, np.float32), "w": np.ones(64, np.float32)}
    merged = merge_state_dicts("dare_linear", base, {"a": one}, seed=0)
    assert (merged["v"] != merged["w"]).any()
    assert (merged["w"] != merge_state_dicts("dare_linear", base, {"a": one}, seed=1)["w"]).any()
    assert (merged["w"] != merge_state_dicts("dare_linear", base, {"b": one}, seed=0)["w"]).any()


def test_ties_keeps_the_lowest_index_at_the_threshold():
    base, expert = {"w": np.zeros(6, np.float32)}, {"w": np.float32([1, -2, 2, -2, 1, 2])}
    merged = merge_state_dicts("ties", base, {"a": expert}, density=0.5)["w"]
    assert merged.tolist() == [0, -2, 2, -2, 0, 0]


def test_global_scope_lets_tensors_compete():
    base = {"big": np.zeros(4, np.float32), "small": np.zeros(4, np.float32)}
    expert = {"big": np.float32([4, 5, 6, 7]), "small": np.float32([1, 2, 3, 0])}
    merged = merge_state_dicts("ties", base, {"a": expert}, density=0.4, scope="global")
    assert merged["big"].tolist() == [4, 5, 6, 7] and merged["small"].tolist() == [0, 0, 0, 0]


@pytest.mark.parametrize(
    ("method", "values", "words"),
    [
        ("tiez", {}, ["'tiez'", "'ties'"]),
        ("ties", {"densty": 0.2}, ["densty", "'density'"]),
        ("ties", {"density": -0.5}, ["density", "-0.5", "between 0 and 1"]),
        ("ties", {"density": 1.5}, ["density", "1.5"]),
        ("linear", {"weight": {"a": 1, "b": -1}}, ["sum to 0"]),
        ("linear", {"weight": {"a": 1, "c": 1}}, ["unknown expert 'c'", "no value for expert(s) b"]),
        ("linear", {"weight": [1.0]}, ["1 values for 2 experts"]),
        ("slerp", {}, ["requires it", "at most 1 expert"]),
        ("dare_linear", {"density": 0.0}, ["density 0"]),
        ("dare_linear", {"rescale": "l2"}, ["rescale", "inverse, l1, none"]),
        ("linear", {"weight": "much"}, ["weight", "'much'"]),
        ("linear", {"normalize": 1}, ["normalize", "true or false"]),
    ],
)
def test_wrong_requests_are_refused_by_name(method, values, words):
    base, models = make_models({"w": (2, 2)}, ["a", "b"], 0)
    with pytest.raises(RecipeError) as refused:
        merge_state_dicts(method, None if method == "linear" else base, models, **values)
    for word in words:
        assert word in str(refused.value)


def test_all_problems_come_together():
    with pytest.raises(RecipeError) as refused:
        merge_state_dicts("ties", None, {"a": {"w": np.ones(1)}}, density=2, lamda=1)
    for word in ("needs a base", "density", "lamda", "3 problems"):
        assert word in str(refused.value)
