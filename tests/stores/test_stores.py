"""What every set of stores does; run for each of them."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from consilience.data.documents import Document, Part
from consilience.errors import DataError, RequestError
from consilience.stores.embedded import EmbeddedStores
from consilience.stores.protocol import Batch, Stores, VectorSpace
from consilience.stores.table import Edge
from consilience.stores.where import matches, parse_where

SPACE = VectorSpace("s", 4)
Make = Callable[[], Stores]


def embedded(folder: Path) -> Make:
    places = iter(range(10_000))
    return lambda: EmbeddedStores.create(folder / f"index-{next(places)}", [SPACE], language="english")


@pytest.fixture(params=["embedded", pytest.param("postgres", marks=pytest.mark.slow)])
def make(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Make]:
    if request.param == "embedded":
        yield embedded(tmp_path)
        return
    make_postgres, names = request.getfixturevalue("make_postgres"), (f"index_{place}" for place in range(10_000))
    yield lambda: make_postgres(next(names), SPACE)


def vectors_of(documents: list[Document]) -> np.ndarray[Any, Any]:
    return np.stack([np.random.default_rng([*one.text.encode()]).normal(size=4) for one in documents])


def batch(*documents: Document, edges: tuple[Edge, ...] = ()) -> Batch:
    return Batch(documents, {"s": vectors_of(list(documents)) if documents else np.empty((0, 4))}, edges)


def ids(stores: Stores, found: Any) -> list[str]:
    documents = stores.documents(found.numbers)
    return [documents[int(number)].id for number in found.numbers]


WORDS = ("lists", "files", "dogs", "rivers", "sorting")
PEOPLE = [
    Document("a", "sorting lists in place", fields={"year": 2020, "lang": "en"}),
    Document("b", "opening files", title="Files", fields={"year": 2021, "lang": "en"}),
    Document("c", (Part("a table of rivers"), Part("Rhine 1233", kind="table", page=2)), fields={"lang": ("de", "en")}),
    Document("d", "Größe der Flüsse, sorted dogs", fields={"year": 2022}, source="file.txt"),
]


def test_documents_come_back_as_they_were(make: Make) -> None:
    stores = make()
    stores.write(batch(*PEOPLE), replace=False)
    found = stores.search_vectors("s", vectors_of(PEOPLE), 4)
    assert [ids(stores, one)[0] for one in found] == ["a", "b", "c", "d"]
    assert sorted(stores.documents(found[0].numbers).values(), key=lambda one: one.id) == PEOPLE
    assert stores.known(["a", "x"]) == {"a": PEOPLE[0].digest}


def test_text_is_found_by_its_words(make: Make) -> None:
    stores = make()
    stores.write(batch(*PEOPLE), replace=False)
    queries = ["how to sort a list", "file", "rhine", "grosse", 'dogs AND "', "", "unknownword", "text:(sorted^"]
    found = [ids(stores, one) for one in stores.search_text(queries, 3)]
    assert found[0] == ["a", "c", "d"]
    assert found[1] == ["b"] and found[2] == ["c"] and found[4] == ["d"] and found[5:7] == [[], []]
    assert set(found[7]) == {"a", "d"}


def test_a_filter_is_applied_before_the_top_k(make: Make) -> None:
    stores = make()
    many = [Document(f"n{n}", "dogs", fields={"n": n}) for n in range(60)]
    stores.write(batch(*many), replace=False)
    query = np.ones((1, 4), np.float32)
    assert set(ids(stores, stores.search_text(["dogs"], 3, where="n >= 57")[0])) == {"n57", "n58", "n59"}
    assert ids(stores, stores.search_vectors("s", query, 3, where={"n": 41})[0]) == ["n41"]
    assert ids(stores, stores.search_text(["dogs"], 3, where="n > 100")[0]) == []
    assert len(ids(stores, stores.search_vectors("s", query, 5, where="n < 50 and not n = 3")[0])) == 5


def test_what_passes_a_filter_is_told_without_a_search(make: Make) -> None:
    stores = make()
    before = stores.generation()
    stores.write(batch(*PEOPLE), replace=False)
    assert stores.generation() == before + 1
    found = stores.passing("lang = 'en'")
    assert [stores.documents([n])[n].id for n in found.tolist()] == ["a", "b", "c"]
    stores.delete(["a"])
    assert len(stores.passing()) == 3 and len(stores.passing("year = 2020")) == 0
    with pytest.raises(RequestError, match="where"):
        stores.passing("year =")


def test_replaced_and_deleted_documents_are_not_found(make: Make) -> None:
    stores = make()
    stores.write(batch(*PEOPLE, edges=(Edge("Rhine", "in", "Germany", "c"),)), replace=False)
    with pytest.raises(DataError, match="'a'"):
        stores.write(batch(Document("a", "other")), replace=False)
    changes = stores.write(batch(Document("a", "about dogs"), Document("e", "dogs too")), replace=True)
    assert (changes.added, changes.replaced) == (1, 1)
    assert ids(stores, stores.search_text(["lists"], 5)[0]) == []
    assert set(ids(stores, stores.search_text(["dogs"], 5)[0])) == {"a", "d", "e"}
    with pytest.raises(RequestError, match="'zzz'"):
        stores.delete(["a", "zzz"])
    assert stores.delete(["c", "d"]).deleted == 2
    assert ids(stores, stores.search_edges([["Rhine"]], 5)[0]) == []
    assert len(stores.search_vectors("s", np.ones((1, 4), np.float32), 10)[0]) == 3
    assert stores.stats()["documents"] == 3


def test_edges_lead_to_documents(make: Make) -> None:
    stores = make()
    edges = (
        Edge("Rhine", "flows through", "Cologne", "c", 1.0),
        Edge("Cologne", "in", "Germany", "d", 0.8),
        Edge("dog", "is a", "animal", "b", 1.0),
    )
    stores.write(batch(*PEOPLE, edges=edges), replace=False)
    assert ids(stores, stores.search_edges([["Rhine"]], 5)[0]) == ["c"]
    assert ids(stores, stores.search_edges([["Rhine"]], 5, hops=2)[0]) == ["c", "d"]
    assert ids(stores, stores.search_edges([["Rhine"]], 5, hops=2, where="year = 2022")[0]) == ["d"]
    with pytest.raises(DataError, match="nowhere"):
        stores.write(batch(Document("x", "x"), edges=(Edge("a", "b", "c", "nowhere"),)), replace=False)
    assert stores.known(["x"]) == {}


@pytest.mark.parametrize(
    ("given", "message"),
    [
        (Batch([Document("x", "x")], {"s": np.ones((1, 3))}), "4 dimensions"),
        (Batch([Document("x", "x")], {"s": np.ones((2, 4))}), "2 vectors"),
        (Batch([Document("x", "x")], {}), "no vectors"),
        (Batch([Document("x", "x")], {"s": np.full((1, 4), np.nan)}), "NaN.*x"),
        (Batch([Document("x", "x")], {"s": np.ones((1, 4)), "t": np.ones((1, 4))}), "no space 't'"),
        (Batch([Document("x", "a\x00b"), Document("x", "y")], {"s": np.ones((2, 4))}), "(?s)twice.*|zero"),
        (Batch([Document("x", "x", fields={"a": float("inf")})], {"s": np.ones((1, 4))}), "inf"),
    ],
)
def test_what_does_not_fit_is_refused_before_anything_is_written(make: Make, given: Batch, message: str) -> None:
    stores = make()
    with pytest.raises((RequestError, DataError), match=message):
        stores.write(given, replace=False)
    assert stores.stats()["documents"] == 0


def test_a_search_that_makes_no_sense_is_refused(make: Make) -> None:
    stores = make()
    with pytest.raises(RequestError, match=r"space 'x' is not in this index"):
        stores.search_vectors("x", np.ones((1, 4), np.float32), 3)
    with pytest.raises(RequestError, match="dimensions"):
        stores.search_vectors("s", np.ones((1, 5), np.float32), 3)
    with pytest.raises(RequestError, match="k is 0"):
        stores.search_text(["a"], 0)
    with pytest.raises(RequestError, match="where"):
        stores.search_text(["a"], 1, where="year >")
    assert [len(one) for one in stores.search_text(["a"], 3)] == [0]


operations = st.lists(
    st.tuples(
        st.sampled_from(["write", "write", "write", "delete", "compact"]),
        st.dictionaries(
            st.sampled_from("abcdefgh"), st.tuples(st.sampled_from(WORDS), st.integers(0, 3)), min_size=1, max_size=4
        ),
    ),
    max_size=12,
)


@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(operations, st.sampled_from(["n < 2", "n = 3 or n is null", "not n = 1"]))
def test_any_sequence_of_changes_leaves_what_it_should(make: Make, steps: Any, where: str) -> None:
    stores = make()
    model: dict[str, Document] = {}
    for kind, given_ in steps:
        documents = [Document(name, f"{word} {name}", fields={"n": n}) for name, (word, n) in given_.items()]
        if kind == "write":
            stores.write(batch(*documents), replace=True)
            model |= {one.id: one for one in documents}
        elif kind == "delete" and (there := [one.id for one in documents if one.id in model]):
            stores.delete(there)
            for name in there:
                del model[name]
        elif kind == "compact":
            stores.compact()  # type: ignore[attr-defined]
            assert stores.stats()["gone"] == 0
    passing = {name for name, one in model.items() if matches(parse_where(where), one)}
    query = np.array([[1.0, 2.0, -1.0, 0.5]], np.float32)
    assert set(ids(stores, stores.search_vectors("s", query, 20, where=where)[0])) == passing
    everything = stores.search_vectors("s", query, 20)[0]
    assert {
        ids(stores, everything)[place]: one for place, one in enumerate(stores.documents(everything.numbers))
    }.keys() == model.keys()
    expected = {
        name: float(row @ query[0] / np.linalg.norm(row) / np.linalg.norm(query))
        for name, row in zip(model, vectors_of([*model.values()]) if model else (), strict=True)
    }
    for name, score in zip(ids(stores, everything), everything.scores, strict=True):
        assert abs(expected[name] - score) < 1e-5
    for word in WORDS:
        holding = {name for name, one in model.items() if one.text.startswith(word[:4])}
        assert set(ids(stores, stores.search_text([word], 20)[0])) == holding
        assert set(ids(stores, stores.search_text([word], 20, where=where)[0])) == holding & passing
    stores.close()


def test_coverage_is_the_share_of_telling_words_of_the_best_hit(make: Make) -> None:
    stores = make()
    texts = ("Ann likes quokkas.", "Bob likes tea.", "Cy likes chess.")
    stores.write(batch(*(Document(str(place), text) for place, text in enumerate(texts))), replace=False)
    asked = ["Who likes the quokkas?", "likes zebras", "who is it", "zebras", ""]
    covered = [found.coverage for found in stores.search_text(asked, 3)]
    assert covered[0] == pytest.approx(1, abs=1e-6)
    assert covered[1] is not None and 0 < covered[1] < 0.1
    assert covered[3] == 0.0
    assert covered[2] is None and covered[4] is None
    assert stores.search_text(["likes quokkas"], 3, where="id = '1'")[0].coverage < 0.2  # type: ignore[operator]


def test_edges_are_there_or_not(make: Make) -> None:
    stores = make()
    stores.write(batch(Document("a", "x")), replace=False)
    assert not stores.has_edges()
    stores.write(batch(Document("b", "y"), edges=(Edge("u", "r", "v", "b"),)), replace=False)
    assert stores.has_edges()


def test_vectors_are_given_back(make: Make) -> None:
    stores = make()
    some = [Document(str(place), f"text {place}") for place in range(5)]
    stores.write(batch(*some[:3]), replace=False)
    stores.write(batch(*some[3:], some[0]), replace=True)
    numbers = stores.numbers(["0", "1", "2", "3", "4", "9"])
    assert set(numbers) == {"0", "1", "2", "3", "4"}
    wanted = vectors_of(some)
    wanted /= np.linalg.norm(wanted, axis=1, keepdims=True)
    order = ["4", "0", "2"]
    assert stores.vectors("s", [numbers[name] for name in order]) == pytest.approx(wanted[[4, 0, 2]], abs=1e-6)
    assert stores.vectors("s", [999, numbers["1"]]) == pytest.approx(np.stack([np.zeros(4), wanted[1]]), abs=1e-6)
    assert stores.vectors("s", []).shape == (0, 4)
    with pytest.raises(RequestError):
        stores.vectors("t", [1])


def test_a_batch_finds_what_single_queries_find(tmp_path: Path) -> None:
    random = np.random.default_rng(5)
    vectors = random.normal(size=(300, 16)).astype(np.float32)
    queries = random.normal(size=(600, 16)).astype(np.float32)
    with EmbeddedStores.create(tmp_path / "index", [VectorSpace("s", 16)]) as stores:
        stores.write(Batch([Document(f"d{row}", "") for row in range(300)], {"s": vectors}), replace=False)
        batch = stores.search_vectors("s", queries, 7)
        alone = [stores.search_vectors("s", query[None], 7)[0] for query in queries]
    for one, other in zip(batch, alone, strict=True):
        np.testing.assert_allclose(one.scores, other.scores, atol=1e-5)
    same = sum(one.numbers.tolist() == other.numbers.tolist() for one, other in zip(batch, alone, strict=True))
    assert same >= 590, "scores that differ in the last bit may change places"
