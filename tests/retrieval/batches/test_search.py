"""Batches of hybrid queries find what a search through all rows finds, whatever the partition and the grouping."""

from __future__ import annotations

import numpy as np
import pytest

from consilience.data.documents import Document
from consilience.errors import RequestError
from consilience.retrieval.batches import BatchIndex, HybridQuery, search_batch, search_one
from consilience.retrieval.batches.search import measure_recall
from consilience.stores.where import matches, parse_where

SEEN = ["lang = 'de'", "year >= 2010 and lang = 'en'", "stars in (4, 5)", "not year < 2000"]
UNSEEN = [None, "year is null", "stars = 1 or lang = 'fr'", "lang = 'xx'", "year < 1995 and not stars = 3", "id = 'a'"]


def rows(count: int, seed: int = 0, dimension: int = 6):
    """Vectors in clusters, on a grid, many of them twice; attributes with holes."""
    random = np.random.default_rng(seed)
    centres = random.integers(-3, 4, size=(9, dimension))
    vectors = (centres[random.integers(9, size=count)] + random.integers(-1, 2, size=(count, dimension))) / 2
    fields = [
        {
            "lang": str(random.choice(["en", "de", "fr"])),
            "year": None if random.random() < 0.15 else int(random.integers(1990, 2025)),
            "stars": int(random.integers(1, 6)),
        }
        for _ in range(count)
    ]
    return vectors.astype(np.float32), fields


def queries(vectors, filters, count: int, seed: int = 1, k: int = 7):
    random = np.random.default_rng(seed)
    near = vectors[random.integers(len(vectors), size=count)] + random.integers(-1, 2, size=(count, vectors.shape[1]))
    return [HybridQuery(vector, filters[random.integers(len(filters))], k) for vector in near]


def brute(vectors, fields, ids, query, metric="l2"):
    """Search through all rows, one by one, with the filter as documents have it."""
    own = np.asarray(query.vector, np.float32)
    if metric == "cosine":
        vectors, own = unit(vectors), unit(own[None])[0]
    rows_, own = vectors.astype(np.float64), own.astype(np.float64)
    if metric == "l2":
        distances = ((rows_ - own) ** 2).sum(axis=1)
    else:
        distances = (1 if metric == "cosine" else 0) - (rows_ * own).sum(axis=1)
    found = None if query.where is None else parse_where(query.where)
    allowed = [found is None or matches(found, Document("d", "t", fields=given)) for given in fields]
    order = sorted((far, name) for far, name, let in zip(distances.tolist(), ids, allowed, strict=True) if let)
    return tuple(name for _, name in order[: query.k])


def unit(vectors):
    lengths = np.linalg.norm(vectors, axis=1, keepdims=True)
    return np.asarray(vectors / np.where(lengths > 0, lengths, 1), np.float32)


@pytest.mark.parametrize(("metric", "count"), [("l2", 600), ("inner_product", 200), ("cosine", 200)])
def test_a_thousand_random_queries_equal_a_search_through_all_rows(metric, count):
    vectors, fields = rows(700)
    names = [f"n{number}" for number in np.random.default_rng(5).permutation(len(vectors)).tolist()]
    past = queries(vectors, SEEN, 80)
    index = BatchIndex.build(
        vectors, fields, ids=names, workload=past, metric=metric, lists=12, nprobe=3, min_leaf=25, centroid_cuts=20
    )
    assert len(index.tree.steps) >= 3 and sum(index.leaf_sizes) == 700
    asked = queries(vectors, SEEN + UNSEEN, count, seed=3)
    found = search_batch(index, asked, exact=True)
    expected = [brute(vectors, fields, names, query, metric) for query in asked]
    assert [hits.ids for hits in found.hits] == expected
    if metric == "l2":  # distances on a grid are often equal: float32 leaves open which are nearer
        assert found.measured_in_full > 0


@pytest.mark.parametrize("exact", [False, True])
def test_an_answer_does_not_depend_on_what_is_asked_beside_it(exact):
    vectors, fields = rows(500, seed=2)
    vectors += np.random.default_rng(0).normal(size=vectors.shape).astype(np.float32) / 10
    index = BatchIndex.build(vectors, fields, workload=queries(vectors, SEEN, 50), lists=10, nprobe=3, min_leaf=20)
    asked = queries(vectors, SEEN + UNSEEN, 60, seed=4)
    together = search_batch(index, asked, exact=exact).hits
    backwards = search_batch(index, asked[::-1], exact=exact).hits[::-1]
    for query, hits, turned in zip(asked, together, backwards, strict=True):
        alone = search_one(index, query, exact=exact)
        assert hits.ids == turned.ids == alone.ids
        assert hits.distances.tobytes() == turned.distances.tobytes() == alone.distances.tobytes()
        assert hits.tuples_touched == alone.tuples_touched >= hits.distances_computed >= len(hits)


def test_the_partition_saves_rows_and_changes_no_answer():
    vectors, fields = rows(1000, seed=3)
    past, asked = queries(vectors, SEEN, 80), queries(vectors, SEEN, 80, seed=9)
    plain = BatchIndex.build(vectors, fields, lists=16, nprobe=4)
    cut = BatchIndex.build(vectors, fields, workload=past, centroids=plain.centroids, nprobe=4, min_leaf=20)
    whole, parted = search_batch(plain, asked), search_batch(cut, asked)
    assert [hits.ids for hits in whole.hits] == [hits.ids for hits in parted.hits]
    assert parted.tuples_touched < 0.7 * whole.tuples_touched
    assert parted.distances_computed == whole.distances_computed and parted.groups == whole.groups
    assert cut.tree.cost < cut.tree.cost_unpartitioned and plain.tree.descriptions == ("",)
    assert cut.tree.cost_unpartitioned - cut.tree.cost == sum(step.tuples_skipped for step in cut.tree.steps)


def test_several_values_of_k_and_of_lists_in_one_batch():
    vectors, fields = rows(300, seed=4)
    index = BatchIndex.build(vectors, fields, lists=10, nprobe=2)
    asked = [HybridQuery(vectors[n], SEEN[n % 4], k=1 + 3 * n, nprobe=1 + n) for n in range(12)]
    found = search_batch(index, asked).hits
    assert [hits.ids for hits in found] == [search_one(index, query).ids for query in asked]
    widest = HybridQuery(vectors[0], None, k=300, nprobe=10)
    assert search_one(index, widest).ids == brute(vectors, fields, range(300), widest)


def test_fewer_matches_than_asked_for_and_none():
    vectors, fields = rows(200)
    index = BatchIndex.build(vectors, fields, lists=5)
    some = sum(given["stars"] == 1 for given in fields)
    found = search_batch(
        index,
        [HybridQuery(vectors[0], "stars = 1", k=1000), HybridQuery(vectors[1], "lang = 'xx'")],
        exact=True,
    ).hits
    assert len(found[0]) == some and sorted(found[0].distances) == found[0].distances.tolist()
    assert found[1].ids == () and len(found[1].distances) == found[1].tuples_touched == found[1].leaves_visited == 0
    nothing = search_batch(index, [])
    assert nothing.hits == () and nothing.groups == 0


def test_an_absent_attribute_is_neither_matched_nor_its_opposite():
    index = BatchIndex.build(np.eye(3), [{"year": 2000}, {"year": None}, {}], lists=1, ids=["a", "b", "c"])
    for where, expected in [("year = 2000", {"a"}), ("not year = 2000", set()), ("year is null", {"b", "c"})]:
        assert set(search_one(index, HybridQuery(np.ones(3), where)).ids) == expected


def test_additions_and_deletions_are_seen_at_once():
    vectors, fields = rows(400, seed=6)
    index = BatchIndex.build(
        vectors[:300], fields[:300], workload=queries(vectors, SEEN, 40), lists=8, nprobe=3, min_leaf=20
    )
    asked = queries(vectors, SEEN + UNSEEN, 40, seed=8)
    search_batch(index, asked)
    index.add(vectors[300:], fields[300:], ids=range(300, 400))
    gone = list(range(0, 400, 3))
    assert index.delete([*gone, 0, 12345]) == len(gone) and len(index) == 400 - len(gone)
    kept = [row for row in range(400) if row % 3]
    expected = [brute(vectors[kept], [fields[row] for row in kept], kept, query) for query in asked]
    assert [hits.ids for hits in search_batch(index, asked, exact=True).hits] == expected
    again = index.rebuild(queries(vectors, UNSEEN, 40))
    assert len(again) == len(index) and again.tree.descriptions != index.tree.descriptions
    assert [hits.ids for hits in search_batch(again, asked, exact=True).hits] == expected
    index.add(vectors[:1], [{"lang": "de"}], ids=[0])  # an id that was deleted can come back
    assert search_one(index, HybridQuery(vectors[0], "lang = 'de' and year is null", k=1), exact=True).ids == (0,)
    index.delete(range(400))
    assert search_one(index, asked[0], exact=True).ids == ()


def test_the_drift_tells_when_the_workload_has_moved():
    vectors, fields = rows(1500, seed=7)
    index = BatchIndex.build(
        vectors, fields, workload=queries(vectors, ["lang = 'de' and stars = 2"], 40), lists=8, nprobe=3, min_leaf=10
    )
    assert index.drift == 1
    search_batch(index, queries(vectors, ["lang = 'de' and stars = 2"], 40, seed=11))
    assert not index.needs_rebuild
    search_batch(index, queries(vectors, ["year < 2020"], 200))
    assert index.needs_rebuild
    assert not index.rebuild(queries(vectors, ["year < 2020"], 40)).needs_rebuild


def test_a_bitmap_is_evaluated_once():
    vectors, fields = rows(200)
    index = BatchIndex.build(vectors, fields, workload=queries(vectors, SEEN, 20), lists=5)
    assert search_batch(index, queries(vectors, SEEN, 20)).filters_evaluated == 0
    asked = [HybridQuery(vectors[n], "year = 2001") for n in range(5)]
    assert search_batch(index, asked).filters_evaluated == 1
    assert search_batch(index, asked).filters_evaluated == 0


def test_the_same_seed_gives_the_same_index():
    vectors, fields = rows(300)
    first, second = (BatchIndex.build(vectors, fields, seed=3, lists=7) for _ in range(2))
    assert first.centroids.tobytes() == second.centroids.tobytes()


def test_numbers_and_truth_values_are_different_filters():
    index = BatchIndex.build(np.eye(2), [{"x": 1}, {"x": True}], lists=1)
    found = search_batch(index, [HybridQuery([1, 1], "x = 1"), HybridQuery([1, 1], "x = true")]).hits
    assert [hits.ids for hits in found] == [(0,), (1,)]


def test_the_recall_is_measured_and_kept():
    vectors, fields = rows(500, seed=8)
    index = BatchIndex.build(vectors, fields, lists=10, nprobe=1)
    asked = queries(vectors, SEEN, 30)
    few = measure_recall(index, asked)
    assert 0 < few < 1 and index.recall == few
    index.nprobe = 10
    assert measure_recall(index, asked) == 1


def test_problems_of_a_batch_are_told_together():
    index = BatchIndex.build(np.eye(3), [{}, {}, {}], metric="cosine")
    asked = [
        HybridQuery([1, 2]),
        HybridQuery([1, 2, 3], "year >"),
        HybridQuery([1, 2, 3], k=0, nprobe=0),
        HybridQuery([1, 2, 3], metric="l2"),
    ]
    with pytest.raises(RequestError) as caught:
        search_batch(index, asked)
    for told in (
        "query 0: a vector of shape [2]",
        "query 1: where",
        "query 2: k is 0",
        "nprobe is 0",
        "query 3: metric",
    ):
        assert told in str(caught.value)
    with pytest.raises(RequestError, match="NaN or infinity"):
        search_one(index, HybridQuery([1, 2, float("nan")]))


def test_problems_of_an_index_are_told_together():
    with pytest.raises(RequestError) as caught:
        BatchIndex.build(np.eye(3), [{}], ids=["a", "a", "b"], metric="dot", nprobe=0)  # type: ignore[arg-type]
    for told in ("metric 'dot'", "3 vectors, 1 fields, 3 ids", "nprobe is 0", "1 ids are there twice ('a')"):
        assert told in str(caught.value)
    index = BatchIndex.build(np.eye(3), [{}, {}, {}])
    with pytest.raises(RequestError, match="ids are there twice"):
        index.add(np.eye(3)[:1], [{}], ids=[2])
    with pytest.raises(RequestError, match="all str or all int"):
        index.add(np.eye(3)[:1], [{}], ids=["x"])
    with pytest.raises(RequestError, match="3 dimensions"):
        index.add(np.eye(4), [{}] * 4, ids=range(3, 7))
