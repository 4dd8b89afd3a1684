"""Fusion: values by hand, laws for all methods, and what is refused."""

from __future__ import annotations

import subprocess
import sys

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from consilience.errors import DataError, RecipeError
from consilience.retrieval.fusion import find_fusion, fuse, fusion_names, origins

NAMES = [name for name in fusion_names() if name != "learned"]
LISTS = {
    "vector": [("a", 0.9), ("b", 0.7), ("c", 0.5)],
    "text": [("b", 12.0), ("d", 4.0)],
    "graph": [("d", 1.0)],
}
BY_HAND = {
    "weighted": {"a": 1 / 3, "b": 1 / 6 + 1 / 3, "c": 0, "d": 0 + 1 / 3},
    "rrf": {"a": 1 / 61, "b": 1 / 62 + 1 / 61, "c": 1 / 63, "d": 1 / 62 + 1 / 61},
    "combsum": {"a": 1, "b": 1.5, "c": 0, "d": 1},
    "combmnz": {"a": 1, "b": 3, "c": 0, "d": 2},
    "isr": {"a": 1, "b": 2 * 1.25, "c": 1 / 9, "d": 2 * 1.25},
    "log_isr": {"a": np.log(1.01), "b": np.log(2.01) * 1.25, "c": np.log(1.01) / 9, "d": np.log(2.01) * 1.25},
    # 4 keys; absent ones share what is left: 1 in vector, 1.5 in text, 2 in graph
    "borda": {"a": 4 + 1.5 + 2, "b": 3 + 4 + 2, "c": 2 + 1.5 + 2, "d": 1 + 3 + 4},
    # a-b 1:1, a-c 1:0, a-d 1:2, b-c 2:0, b-d 2:1, c-d 1:2
    "condorcet": {"a": 1.5 / 3, "b": 2.5 / 3, "c": 0, "d": 2 / 3},
    "interleave": {"a": 1, "b": 1 / 2, "d": 1 / 3, "c": 1 / 4},
}


@pytest.mark.parametrize("method", NAMES)
def test_values_by_hand(method):
    fused = fuse(LISTS, method)
    assert dict(fused) == pytest.approx(BY_HAND[method])
    met = list(dict.fromkeys(key for hits in LISTS.values() for key, _ in hits))
    assert [key for key, _ in fused] == sorted(met, key=lambda key: -dict(fused)[key])


def test_by_hand_covers_every_method():
    assert set(BY_HAND) == set(NAMES)


keys = st.one_of(st.integers(0, 12), st.sampled_from("abcdefgh"))
scores = st.floats(-1e6, 1e6)


@st.composite
def rankings(draw):
    lists = {}
    for name in draw(st.lists(st.sampled_from(["u", "v", "w", "x"]), min_size=1, max_size=4, unique=True)):
        found = draw(st.lists(keys, max_size=8, unique=True))
        values = sorted(draw(st.lists(scores, min_size=len(found), max_size=len(found))), reverse=True)
        lists[name] = list(zip(found, values, strict=True))
    return lists


@st.composite
def weighted_rankings(draw):
    lists = draw(rankings())
    weights = {name: draw(st.floats(0.01, 10)) for name in lists}
    return lists, weights


@pytest.mark.parametrize("method", NAMES)
@settings(max_examples=30, deadline=None)
@given(case=weighted_rankings())
def test_every_key_comes_once_best_first_and_again_the_same(method, case):
    lists, weights = case
    fused = fuse(lists, method, weights=weights)
    assert {key for key, _ in fused} == {key for hits in lists.values() for key, _ in hits}
    assert len({key for key, _ in fused}) == len(fused)
    values = [score for _, score in fused]
    assert values == sorted(values, reverse=True) and np.isfinite(values).all()
    assert fuse(lists, method, weights=weights) == fused
    if fused:
        assert fuse(lists, method, weights=weights, k=1) == fused[:1]


@pytest.mark.parametrize("method", [name for name in NAMES if name not in ("interleave", "condorcet")])
@settings(max_examples=30, deadline=None)
@given(lists=rankings())
def test_the_order_of_lists_changes_no_score(method, lists):
    turned = dict(reversed(lists.items()))
    assert dict(fuse(lists, method)) == dict(fuse(turned, method))


@pytest.mark.parametrize("method", NAMES)
@settings(max_examples=30, deadline=None)
@given(lists=rankings(), data=st.data())
def test_a_list_of_weight_zero_is_not_there(method, lists, data):
    left_out = data.draw(st.sampled_from(sorted(lists)))
    weights = {name: float(name != left_out) for name in lists}
    if any(weights.values()):
        rest = {name: hits for name, hits in lists.items() if name != left_out}
        assert fuse(lists, method, weights=weights) == fuse(rest, method, weights=dict.fromkeys(rest, 1.0))


@pytest.mark.parametrize("method", NAMES)
@settings(max_examples=30, deadline=None)
@given(case=weighted_rankings(), name=st.sampled_from(["u", "v", "w", "x"]))
def test_one_list_keeps_its_order(method, case, name):
    lists, _ = case
    if name in lists:
        only = lists[name]
        assert [key for key, _ in fuse({"one": only}, method)] == [key for key, _ in only]


@pytest.mark.parametrize("method", NAMES)
def test_a_larger_weight_decides_between_two_lists(method):
    lists = {"left": [("a", 2.0), ("b", 1.0)], "right": [("b", 9.0), ("a", 8.0)]}
    assert fuse(lists, method, weights={"left": 2, "right": 1}, k=1)[0][0] == "a"
    if method != "interleave":
        assert fuse(lists, method, weights={"left": 1, "right": 2}, k=1)[0][0] == "b"


@settings(max_examples=30, deadline=None)
@given(lists=rankings(), factor=st.floats(0.1, 100))
def test_weighted_is_within_0_and_1_and_weights_are_shares(lists, factor):
    weights = dict.fromkeys(lists, 0.7)
    fused = fuse(lists, weights=weights)
    assert all(0 <= score <= 1 + 1e-12 for _, score in fused)
    scaled = fuse(lists, weights={name: weight * factor for name, weight in weights.items()})
    assert dict(scaled) == pytest.approx(dict(fused), abs=1e-12)
    assert dict(fused) == pytest.approx({k: v / len(lists) for k, v in fuse(lists, "combsum")}, abs=1e-12)


@settings(max_examples=30, deadline=None)
@given(data=st.data())
def test_condorcet_puts_the_key_that_beats_every_other_first(data):
    everything = list("abcdef")
    votes = [data.draw(st.permutations(everything)) for _ in range(data.draw(st.integers(1, 5)))]
    lists = {str(i): [(key, -float(place)) for place, key in enumerate(order)] for i, order in enumerate(votes)}

    def beats(one, other):
        return 2 * sum(order.index(one) < order.index(other) for order in votes) > len(votes)

    winners = [key for key in everything if all(beats(key, other) for other in everything if other != key)]
    if winners:
        assert fuse(lists, "condorcet", k=1)[0] == (winners[0], 1.0)


def test_condorcet_votes_in_blocks_as_at_once(monkeypatch):
    random = np.random.default_rng(0)
    lists = {str(i): [(int(key), -float(n)) for n, key in enumerate(random.permutation(50)[:40])] for i in range(3)}
    whole = fuse(lists, "condorcet")
    monkeypatch.setattr("consilience.retrieval.fusion.methods.condorcet._PAIRS", 120)
    assert fuse(lists, "condorcet") == whole


def test_equal_scores_keep_the_order_in_which_keys_are_met():
    lists = {"one": [("z", 1.0), ("y", 1.0)], "two": [("x", 3.0), ("a", 3.0)]}
    assert [key for key, _ in fuse(lists)] == ["z", "y", "x", "a"]
    assert [key for key, _ in fuse(lists, "rrf")] == ["z", "x", "y", "a"]


def test_scores_keep_how_sure_a_list_is_and_ranks_do_not():
    lists = {
        "sure": [("right", 30.0), ("also right", 29.0), ("wrong", 1.0), ("last", 0.0)],
        "dull": [("noise", 0.33), ("more noise", 0.32), ("wrong", 0.31), ("last", 0.3)],
    }
    assert [key for key, _ in fuse(lists, weights={"sure": 0.6, "dull": 0.4}, k=2)] == ["right", "also right"]
    assert fuse(lists, "rrf", weights={"sure": 0.6, "dull": 0.4}, k=1)[0][0] == "wrong"


def test_the_floor_lifts_the_last_hit_above_what_is_absent():
    lists = {"one": [("a", 2.0), ("b", 1.0)], "two": [("c", 2.0), ("a", 1.0)]}
    assert dict(fuse(lists, floor=0.2)) == pytest.approx({"a": 0.6, "b": 0.1, "c": 0.5})


def test_huge_and_equal_scores():
    assert fuse({"one": [("a", 1.7e308), ("b", 0.0), ("c", -1.7e308)]}) == [("a", 1.0), ("b", 0.5), ("c", 0.0)]
    assert fuse({"one": [("a", -3.0), ("b", -3.0)], "two": []}) == [("a", 0.5), ("b", 0.5)]
    assert fuse({"one": [("a", 4.0), ("b", 4.0)]}, "combsum", normalise="sum") == [("a", 0.5), ("b", 0.5)]
    assert fuse({"one": [], "two": []}) == []


def test_numbers_of_numpy_are_keys_and_scores():
    hits = [(np.int64(7), np.float32(0.5)), (3, np.float64(0.25))]
    assert fuse({"one": hits, "two": [(7, 1.0)]}) == [(7, 1.0), (3, 0.0)]


def test_origins_name_every_list_with_rank_and_score():
    found = origins(LISTS)
    assert {name: (o.rank, o.score) for name, o in found["d"].items()} == {"text": (2, 4.0), "graph": (1, 1.0)}
    assert list(found) == ["a", "b", "c", "d"]


@pytest.mark.parametrize(
    ("hits", "message"),
    [
        ([("a", float("nan"))], "score of 'a' at rank 1 is nan"),
        ([("a", float("inf"))], "finite"),
        ([("a", 1.0), ("b", 0.5), ("a", 0.1)], "'a' is there twice, again at rank 3"),
        ([("a", 1.0), ("b", 2.0)], "score 2 at rank 2 is above the one before"),
        ([(("a",), 1.0)], "neither text nor a whole number"),
        (["a"], "entry 1 is 'a'; entries are pairs"),
        ([("a", None)], "is None; scores are finite"),
    ],
)
def test_lists_that_cannot_be_used_are_named(hits, message):
    with pytest.raises(DataError, match="rankings to fuse") as error:
        fuse({"good": [("a", 1.0)], "bad": hits})
    assert "list 'bad'" in str(error.value) and message in str(error.value)


def test_all_problems_are_reported_together():
    with pytest.raises(DataError) as error:
        fuse({"one": [("a", float("nan"))], "two": [("a", 1.0), ("a", 1.0)]})
    assert "2 problems" in str(error.value)
    with pytest.raises(RecipeError) as error:
        fuse(LISTS, weights={"vektor": 1, "text": -1, "vector": 1}, k=0, flor=0.1)
    for part in ("5 problems", "no list 'vektor'; did you mean 'vector'", "-1 of 'text'", "'graph' has none"):
        assert part in str(error.value)
    assert "did you mean 'floor'" in str(error.value)


@pytest.mark.parametrize(
    ("method", "options", "message"),
    [
        ("wieghted", {}, "did you mean 'weighted'"),
        ("weighted", {"weights": {"vector": 0, "text": 0, "graph": 0}}, "all are 0"),
        ("weighted", {"weights": {"vector": float("nan"), "text": 1, "graph": 1}}, "nan of 'vector'"),
        ("weighted", {"floor": 1.0}, "floor: 1.0"),
        ("rrf", {"constant": -1}, "constant: -1"),
        ("log_isr", {"sigma": 0}, "sigma: 0"),
        ("combsum", {"normalise": "minmax"}, "did you mean 'min_max'"),
        ("borda", {"constant": 60}, "it takes none"),
        ("learned", {}, "option 'model' is missing"),
    ],
)
def test_requests_that_cannot_be_done(method, options, message):
    with pytest.raises(RecipeError, match=message):
        fuse(LISTS, method, **options)


def test_no_lists_is_an_error():
    with pytest.raises(RecipeError, match="no list to fuse"):
        fuse({})


def test_names_are_listed_without_importing_a_method():
    code = (
        "import sys\nfrom consilience.retrieval.fusion import fusion_names\n"
        "print(len(fusion_names()), [m for m in sys.modules if 'fusion.methods' in m or m in ('sklearn', 'scipy')])"
    )
    printed = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert printed == f"{len(fusion_names())} []\n"


@pytest.mark.parametrize("name", fusion_names())
def test_every_method_says_when_to_use_it(name):
    text = sys.modules[find_fusion(name).__module__].__doc__
    assert "\nUse: " in text and "\nAvoid: " in text and "\nSource: " in text
