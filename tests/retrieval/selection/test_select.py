"""Selection: values by hand, guarantees by brute force, lazy against plain, and what is refused."""

from __future__ import annotations

import math
import subprocess
import sys
from itertools import combinations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from consilience.errors import DataError, RecipeError
from consilience.retrieval.selection import Candidates, find_selection, select, selection_names
from consilience.retrieval.selection.greedy import budgeted, greedy

SUBMODULAR = ("facility_location", "clusters", "top_k")
BASE = [[1.0, 0.1, 0.0], [1.0, 0.11, 0.0], [0.7, 0.7, 0.0], [0.1, 1.0, 0.2], [0.0, 0.1, 1.0]]


def make_candidates(seed, most=12, dtype=np.float64):
    """A few vectors in loose groups, with copies and candidates without relevance among them."""
    random = np.random.default_rng(seed)
    count, dimension = int(random.integers(1, most + 1)), int(random.integers(2, 6))
    centres = random.normal(size=(3, dimension))
    vectors = centres[random.integers(0, 3, count)] + 0.4 * random.normal(size=(count, dimension))
    if count > 3:
        vectors[-1] = vectors[0]
    vectors = (vectors / np.linalg.norm(vectors, axis=1, keepdims=True)).astype(dtype)
    relevance = np.maximum(vectors.astype(np.float64) @ (centres[0] / np.linalg.norm(centres[0])), 0)
    return Candidates(vectors, relevance)


def value(candidates, method, indices, **options):
    """F(S) from its formula."""
    chosen = list(indices)
    relevance = candidates.relevance
    near = np.maximum(candidates.vectors @ candidates.vectors[chosen].T, 0)
    if method == "facility_location":
        lambda_ = options.get("lambda_", 0.1)
        return float(relevance @ near.max(axis=1, initial=0) + lambda_ * relevance[chosen].sum())
    if method == "clusters":
        labels = np.array(options["labels"])[chosen]
        return sum(math.sqrt(relevance[chosen][labels == label].sum()) for label in set(labels))
    if method == "top_k":
        return float(relevance[chosen].sum())
    if method == "dispersion":
        pairs = near[chosen]
        return float((1 - pairs)[np.triu_indices(len(chosen), 1)].sum() + relevance[chosen].sum())
    kernel = relevance[chosen, None] * (candidates.vectors[chosen] @ candidates.vectors[chosen].T) * relevance[chosen]
    return float(np.linalg.slogdet(kernel + 1e-6 * np.eye(len(chosen)))[1])


def options_of(method, candidates):
    return {"labels": [i % 3 for i in range(len(candidates))]} if method == "clusters" else {}


@pytest.mark.parametrize("method", [name for name in selection_names() if name != "mmr"])
@pytest.mark.parametrize("seed", range(20))
def test_gains_are_differences_of_the_formula(method, seed):
    candidates = make_candidates(seed)
    options = options_of(method, candidates)
    picks = greedy(find_selection(method)(candidates, **options), len(candidates), 6)
    chosen = [index for index, _ in picks]
    for place, (index, gain) in enumerate(picks):
        before, after = (value(candidates, method, chosen[: place + more], **options) for more in (0, 1))
        assert gain == pytest.approx(after - before, abs=1e-6)
        rest = [other for other in range(len(candidates)) if other not in chosen[:place]]
        best = max(value(candidates, method, [*chosen[:place], other], **options) for other in rest)
        assert after == pytest.approx(best, abs=1e-6), index


@pytest.mark.parametrize("method", SUBMODULAR)
def test_greedy_is_within_its_guarantee_of_the_best_set(method):
    for seed in range(200):
        candidates = make_candidates(seed)
        options = options_of(method, candidates)
        k = 1 + seed % min(5, len(candidates))
        picks = greedy(find_selection(method)(candidates, **options), len(candidates), k)
        best = max(value(candidates, method, s, **options) for s in combinations(range(len(candidates)), k))
        found = value(candidates, method, [index for index, _ in picks], **options)
        assert found >= (1 - 1 / math.e) * best - 1e-9, seed
        assert found == pytest.approx(sum(gain for _, gain in picks))


@pytest.mark.parametrize("method", SUBMODULAR)
def test_the_budgeted_form_is_within_its_guarantee_and_its_budget(method):
    better_single = 0
    for seed in range(200):
        candidates = make_candidates(seed, most=9)
        options = options_of(method, candidates)
        random = np.random.default_rng(seed + 1000)
        costs = random.integers(1, 30, len(candidates)).astype(float)
        budget = float(random.integers(5, 60))
        picks = budgeted(lambda c=candidates, o=options: find_selection(method)(c, **o), costs, budget, len(costs))
        chosen = [index for index, _ in picks]
        assert costs[chosen].sum() <= budget
        sets = (s for size in range(len(costs) + 1) for s in combinations(range(len(costs)), size))
        best = max(value(candidates, method, s, **options) for s in sets if costs[list(s)].sum() <= budget)
        found = value(candidates, method, chosen, **options)
        assert found >= (1 - 1 / math.sqrt(math.e)) * best - 1e-9, seed
        better_single += len(chosen) == 1
    assert better_single > 0


@pytest.mark.parametrize("method", SUBMODULAR)
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@settings(max_examples=25, deadline=None)
@given(seed=st.integers(0, 10_000), k=st.integers(1, 60))
def test_lazy_is_plain(method, dtype, seed, k):
    candidates = make_candidates(seed, most=120, dtype=dtype)
    options = options_of(method, candidates)

    def build():
        return find_selection(method)(candidates, **options)

    lazy, plain = (greedy(build(), len(candidates), k, lazy=flag) for flag in (True, False))
    assert [index for index, _ in lazy] == [index for index, _ in plain]
    assert [gain for _, gain in lazy] == pytest.approx([gain for _, gain in plain], abs=1e-5)
    costs = np.random.default_rng(seed).integers(1, 9, len(candidates)).astype(float)
    lazy, plain = (budgeted(build, costs, 20.0, k, lazy=flag) for flag in (True, False))
    assert [index for index, _ in lazy] == [index for index, _ in plain]


def test_lazy_evaluates_less():
    candidates = make_candidates(3, most=120)
    counted = {True: 0, False: 0}
    for lazy in counted:
        objective = find_selection("facility_location")(candidates)
        gains = objective.gains

        def count(indices, gains=gains, lazy=lazy):
            counted[lazy] += len(indices)
            return gains(indices)

        objective.gains = count
        greedy(objective, len(candidates), 30, lazy=lazy)
    assert len(candidates) > 80 and counted[True] < 0.8 * counted[False]


def test_blocks_and_kept_similarities_give_the_same(monkeypatch):
    candidates = make_candidates(5, most=200)
    kept = greedy(find_selection("facility_location")(candidates), len(candidates), 20)
    monkeypatch.setattr("consilience.retrieval.selection.methods.facility_location._KEPT", 0)
    monkeypatch.setattr("consilience.retrieval.selection.methods.facility_location._BLOCK", 100)
    blocks = greedy(find_selection("facility_location")(candidates), len(candidates), 20)
    assert [i for i, _ in kept] == [i for i, _ in blocks]


@pytest.mark.parametrize("method", selection_names())
def test_sizes(method):
    query = [1.0, 0.4, 0.1]
    everything = select(BASE, query=query, k=99, method=method)
    assert sorted(everything.indices) == [0, 1, 2, 3, 4] and everything.considered == 5
    assert everything.coverage == pytest.approx(1)
    for k in range(5):
        assert select(BASE, query=query, k=k, method=method).indices == everything.indices[:k]
    none = select(BASE, query=query, k=0, method=method)
    assert (none.indices, none.coverage, none.mean_similarity, none.objective) == ((), 0, 0, 0)
    assert select(np.zeros((0, 3)), query=query, k=3, method=method).indices == ()
    assert select([], query=query, k=3, method=method).indices == ()
    assert select([[2.0, 0.0, 0.0]], query=query, k=3, method=method).indices == (0,)


def test_extremes_of_lambda_are_top_k():
    for seed in range(20):
        candidates = make_candidates(seed)
        args = {"relevance": candidates.relevance, "k": 4}
        order = np.argsort(-candidates.relevance, kind="stable")[:4].tolist()
        if not candidates.relevance.any():
            continue
        assert list(select(candidates.vectors, **args, method="mmr", lambda_=1.0).indices) == order
        if (np.sort(np.diff(np.sort(candidates.relevance)))[:1] > 1e-6).all():
            assert list(select(candidates.vectors, **args, lambda_=1e9).indices) == order


def test_mmr_by_hand():
    vectors = np.array([[1.0, 0.0], [0.8, 0.6], [0.0, 1.0], [-1.0, 0.0]])
    found = select(vectors, relevance=[0.9, 0.8, 0.3, 0.1], k=4, method="mmr", lambda_=0.6)
    # after 0: 0.48 - 0.32, 0.18 - 0, 0.06 - 0; after 2: 0.48 - 0.32, 0.06 - 0
    assert found.indices == (0, 2, 1, 3)
    assert [item.gain for item in found.chosen] == pytest.approx([0.54, 0.18, 0.16, 0.06])


def test_copies_come_last_and_ties_go_to_the_lower_row():
    vectors = np.array([[0.6, 0.8], [1.0, 0.0], [1.0, 0.0], [0.6, 0.8]])
    for dtype in (np.float32, np.float64):
        found = select(vectors.astype(dtype), query=np.array([1.0, 0.5], dtype), k=4)
        assert set(found.indices[:2]) == {0, 1} and found.chosen[2].gain < 0.2
        assert select(vectors.astype(dtype), query=np.array([1.0, 0.5], dtype), k=4, lambda_=0.0).indices[2:] == (2, 3)


def test_measures_by_hand():
    vectors = np.array([[1.0, 0.0], [0.8, 0.6], [0.0, 1.0], [-1.0, 0.0]])
    found = select(vectors, query=[2.0, 0.0], k=2, method="top_k", ids=["a", "b", "c", "d"])
    assert found.ids == ("a", "b")
    assert found.relevance_sum == found.objective == pytest.approx(1.8)
    assert found.mean_similarity == pytest.approx(0.8)
    # 1 * 1 + 0.8 * 1; c and d have no relevance
    assert found.coverage == pytest.approx(1.0)
    assert select(vectors, query=[2.0, 0.0], k=1, method="top_k").coverage == pytest.approx((1 + 0.64) / 1.8)
    assert (found.chosen[1].relevance, found.chosen[1].reached, found.chosen[1].hops) == (0.8, "similarity", None)


def test_a_sample_stands_for_all():
    random = np.random.default_rng(0)
    centres = random.normal(size=(12, 16))
    vectors = centres[random.integers(0, 12, 600)] + 0.5 * random.normal(size=(600, 16)) + 0.5
    args = {"query": np.ones(16), "k": 6}
    exact, top = select(vectors, **args), select(vectors, **args, method="top_k")
    sampled = select(vectors, **args, sample=100)
    assert sampled.coverage > 0.97 * exact.coverage > top.coverage
    assert select(vectors, **args, sample=100) == sampled
    assert select(vectors, **args, sample=600) == exact


def test_a_sample_takes_equal_steps_of_relevance():
    relevance = np.array([0.0, 4.0, 1.0, 1.0, 2.0])
    picks = select(np.eye(5), relevance=relevance, k=5, sample=2, lambda_=0.0)
    # 8 in all, 4 each: the middles of the steps are at 2, in the row of 4, and at 6, at the end of the row of 2
    assert [(item.index, item.gain) for item in picks.chosen[:2]] == [(1, 4.0), (4, 4.0)]
    assert picks.coverage == pytest.approx(1.0)


def test_top_n_keeps_rows_ids_labels_and_costs():
    random = np.random.default_rng(0)
    vectors = random.normal(size=(50, 8))
    query = random.normal(size=8)
    cosines = vectors @ query / np.linalg.norm(vectors, axis=1) / np.linalg.norm(query)
    rows = np.sort(np.argsort(-cosines)[:10])
    for method, extra in (("facility_location", {}), ("clusters", {"labels": [i % 4 for i in range(50)]})):
        found = select(vectors, query=query, k=5, top_n=10, ids=[f"d{i}" for i in range(50)], method=method, **extra)
        inner = {name: [values[i] for i in rows] for name, values in extra.items()}
        alone = select(vectors[rows], query=query, k=5, method=method, **inner)
        assert found.indices == tuple(int(rows[i]) for i in alone.indices)
        assert found.ids == tuple(f"d{i}" for i in found.indices) and found.considered == 10
    costs = np.arange(1.0, 51.0)
    bought = select(vectors, query=query, top_n=10, costs=costs, budget=60)
    assert bought.cost == costs[list(bought.indices)].sum() <= 60


def test_nothing_similar_falls_back_to_the_nearest_and_says_so():
    vectors = [[-1.0, 0.0], [-0.6, 0.8], [-0.6, -0.8], [0.0, 1.0]]
    for method in selection_names():
        found = select(vectors, query=[1.0, 0.0], k=3, method=method)
        assert found.nothing_similar and found.indices == (3, 1, 2)
        assert found.coverage == 0 and not select(vectors, query=[-1.0, 0.0], k=3, method=method).nothing_similar
    assert select(vectors, relevance=[0, 0, 0, 0], k=2).indices == (0, 1)
    assert select(vectors, query=[1.0, 0.0], costs=[1, 2, 2, 9], budget=4).indices == (1, 2)


def test_the_best_single_candidate_wins_over_cheap_ones():
    vectors = np.eye(3)
    relevance, costs = [0.1, 1.0, 0.1], [1, 100, 1]
    assert select(vectors, relevance=relevance, costs=costs, budget=100).indices == (1,)
    assert select(vectors, relevance=relevance, costs=costs, budget=102).indices == (0, 2, 1)
    assert select(vectors, relevance=relevance, costs=costs, budget=0.5).indices == ()
    assert select(vectors, relevance=relevance, costs=costs, budget=102, k=2).indices == (1,)
    copies = np.ones((4, 2))
    assert select(copies, relevance=[1, 1, 1, 1], costs=[1, 1, 1, 1], budget=9, lambda_=0.0).indices == (0,)


def test_clusters_are_found_where_no_labels_are_given():
    random = np.random.default_rng(0)
    groups = np.repeat(np.arange(4), 10)
    vectors = np.eye(6)[groups] + 0.05 * random.normal(size=(40, 6))
    found = select(vectors, relevance=np.linspace(1, 0.5, 40), k=4, method="clusters", number=4)
    assert set(groups[list(found.indices)]) == {0, 1, 2, 3}
    assert select(vectors, relevance=np.linspace(1, 0.5, 40), k=4, method="clusters", number=99).chosen


def test_vectors_of_any_scale_and_type():
    for scale in (1e-30, 1e30):
        vectors = (np.array(BASE) * scale).astype(np.float32)
        assert select(vectors, query=[1.0, 0.4, 0.1], k=5).indices == select(BASE, query=[1.0, 0.4, 0.1], k=5).indices
    half = np.array(BASE, np.float16)
    assert select(half, query=[1.0, 0.4, 0.1], k=2, method="top_k").indices == (1, 0)
    whole = select([[3, 0], [0, 4]], query=[0, 1], k=1)
    assert whole.indices == (1,)


def test_unit_vectors_are_compared_as_they_are():
    vectors = np.array([[1.0005, 0.0], [0.0, 1.0]])
    found = select(vectors, query=[0.9995, 0.0], k=1, method="top_k", unit=True)
    assert found.chosen[0].relevance == pytest.approx(1.0005 * 0.9995)
    with pytest.raises(DataError, match="vector of 'a' has length 2, not 1; leave `unit` away"):
        select([[2.0, 0.0]], query=[1.0, 0.0], k=1, ids=["a"], unit=True)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"vectors": [[1.0, 0.0], [0.0, 0.0]]}, "vector of 'b' is zero, 1 of 2"),
        ({"vectors": [[1.0, float("nan")], [0.0, 1.0]]}, "vector of 'a' is not finite"),
        ({"vectors": [1.0, 2.0]}, "shape"),
        ({"vectors": [[1.0, 0.0]]}, "2 ids for 1 vectors"),
        ({"query": [1.0]}, r"query has shape \(1,\), the vectors \(2, 2\)"),
        ({"query": [0.0, 0.0]}, "vector of 'the query' is zero"),
        ({"relevance": [1.0]}, r"relevance has shape \(1,\) for 2"),
        ({"relevance": [1.0, -1.0]}, "relevance of 'b' is -1"),
        ({"relevance": [float("nan"), 1.0]}, "relevance of 'a' is nan"),
        ({"costs": [0, 1], "budget": 3}, "costs of 'a' is 0"),
    ],
)
def test_candidates_that_cannot_be_used_are_named(changes, message):
    given = {"vectors": [[1.0, 0.0], [0.0, 1.0]], "query": [1.0, 1.0], "k": 1, "ids": ["a", "b"], **changes}
    with pytest.raises(DataError, match=message):
        select(given.pop("vectors"), **given)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"method": "mrr"}, "did you mean 'mmr'"),
        ({"lamda_": 0.5}, "did you mean 'lambda_'"),
        ({"k": -1}, "k: -1"),
        ({"k": True}, "k: True"),
        ({"k": None}, "`k` is missing"),
        ({"query": None}, "relevance is missing"),
        ({"budget": 3}, "`costs` and `budget` go together"),
        ({"top_n": 0}, "top_n: 0"),
        ({"lambda_": -0.1}, "lambda_: -0.1"),
        ({"sample": 0}, "sample: 0"),
        ({"method": "mmr", "lambda_": 1.1}, "share of relevance"),
        ({"method": "dispersion", "lambda_": -1}, "lambda_: -1"),
        ({"method": "log_determinant", "epsilon": 0}, "epsilon: 0"),
        ({"method": "clusters", "labels": [1]}, "1 for 2 candidates"),
        ({"method": "clusters", "labels": [1, 1], "number": 2}, "give one of them"),
        ({"method": "clusters", "number": 0}, "number: 0"),
        ({"method": "mmr", "costs": [1, 1], "budget": 2}, "no form with a budget"),
        ({"method": "dispersion", "costs": [1, 1], "budget": 2}, "no form with a budget"),
    ],
)
def test_requests_that_cannot_be_done(changes, message):
    given = {"query": [1.0, 1.0], "k": 1, **changes}
    with pytest.raises(RecipeError, match=message):
        select([[1.0, 0.0], [0.0, 1.0]], **given)


def test_problems_of_a_request_are_reported_together():
    with pytest.raises(RecipeError, match="3 problems"):
        select(BASE, k=-1, nonsense=1)


def test_too_many_candidates_are_refused_until_the_most_relevant_are_taken():
    vectors = np.random.default_rng(0).normal(size=(20_001, 2)).astype(np.float32)
    with pytest.raises(RecipeError, match="top_n=20000"):
        select(vectors, query=[1.0, 0.0], k=2)
    assert select(vectors, query=[1.0, 0.0], k=2, top_n=300).considered == 300
    assert select(vectors, query=[1.0, 0.0], k=2, method="mmr").considered == 20_001


def test_names_are_listed_without_importing_a_method():
    code = (
        "import sys\nfrom consilience.retrieval.selection import selection_names\n"
        "print(len(selection_names()), [m for m in sys.modules if 'selection.methods' in m or m.startswith('scipy')])"
    )
    printed = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert printed == f"{len(selection_names())} []\n"


@pytest.mark.parametrize("name", selection_names())
def test_every_method_says_when_to_use_it(name):
    text = sys.modules[find_selection(name).__module__].__doc__
    assert "\nUse: " in text and "\nAvoid: " in text
