"""What is found in the server is what the embedded stores find; approximate indexes say what they lose."""

from __future__ import annotations

import random
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from consilience.data.documents import Document
from consilience.errors import RequestError
from consilience.stores.embedded import EmbeddedStores
from consilience.stores.postgres.stores import PostgresStores
from consilience.stores.protocol import Batch, VectorSpace
from consilience.stores.table import Edge
from consilience.stores.vectors import Found
from tests.stores.conftest import MakePostgres, drop

WORDS = np.array([f"word{n}" for n in range(300)])
SHARE = 1 / np.arange(1, 301)
Twins = tuple[PostgresStores, EmbeddedStores]


def rows(count: int) -> np.ndarray:
    return np.random.default_rng(count).normal(size=(count, 16)).astype(np.float32)


def texts(seed: int, count: int, longest: int) -> list[str]:
    draw = np.random.default_rng(seed)
    return [" ".join(draw.choice(WORDS, draw.integers(1, longest), p=SHARE / SHARE.sum())) for _ in range(count)]


@pytest.fixture(scope="module")
def twins(postgres_url: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Twins]:
    """Two indexes with the same history."""
    many = [Document(f"d{n}", text, fields={"n": n}) for n, text in enumerate(texts(7, 600, 60))]
    draw = np.random.default_rng(8)
    edges = [
        Edge(f"e{draw.integers(150)}", "r", f"e{draw.integers(150)}", one.id, draw.random() * 1.5 + 0.01)
        for one in many
    ]
    edges += [Edge("hub", "r", f"e{n % 150}", f"d{n}", 0.5 + n % 7 / 10) for n in range(300)]
    space = VectorSpace("s", 16)
    made = (
        PostgresStores.create(postgres_url, "twin", [space]),
        EmbeddedStores.create(tmp_path_factory.mktemp("twin") / "index", [space]),
    )
    for one in made:
        one.write(Batch(many, {"s": rows(600)}, edges), replace=False)
        one.write(Batch(many[:100], {"s": rows(100)}), replace=True)
        one.delete([f"d{n}" for n in range(150, 200)])
    yield made
    for one in made:
        one.close()
    drop(postgres_url, "twin")


def pairs(twins: Twins, search: str, *given_: Any, **options: Any) -> Iterator[tuple[Found, Found]]:
    """Search both and return what they found side by side."""
    ours, theirs = (getattr(one, search)(*given_, **options) for one in twins)
    return zip(ours, theirs, strict=True)


@pytest.mark.slow
@pytest.mark.parametrize("k", [1, 10, 1000])
@pytest.mark.parametrize("where", [None, "n >= 300 and n < 420"])
def test_it_finds_what_the_embedded_stores_find(twins: Twins, where: str | None, k: int) -> None:
    queries = [*texts(9, 40, 8), " ".join(WORDS), "word0", "word0 word0 word299", "none of these"]
    for ours, theirs in pairs(twins, "search_text", queries, k, where=where):
        assert len(ours) == len(theirs)
        # tantivy keeps lengths of texts in one byte, and counts what was replaced until it merges
        assert np.allclose(ours.scores, theirs.scores, rtol=0.1)
        assert k < 1000 or set(ours.numbers) == set(theirs.numbers)
    for ours, theirs in pairs(twins, "search_vectors", "s", rows(20), k, where=where):
        assert ours.numbers.tolist() == theirs.numbers.tolist()
        assert np.allclose(ours.scores, theirs.scores, atol=1e-5)
    starts = [[f"e{n}", f"e{n + 1}"] for n in range(40)] + [["nobody"], [], ["hub"], ["hub", "hub", "e1"]]
    for hops in (0, 1, 2, 4):
        for ours, theirs in pairs(twins, "search_edges", starts, k, hops=hops, where=where):
            assert ours.numbers.tolist() == theirs.numbers.tolist()
            assert np.allclose(ours.scores, theirs.scores)


@pytest.mark.slow
@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.lists(st.sampled_from("abcdefghij"), min_size=1, max_size=12), st.integers(1, 8))
def test_the_best_documents_are_those_of_a_full_comparison(counted: PostgresStores, query: list[str], k: int) -> None:
    (everything,) = counted.search_text([" ".join(query)], 1000)
    (best,) = counted.search_text([" ".join(query)], k)
    assert best.numbers.tolist() == everything.numbers[:k].tolist()
    assert np.allclose(best.scores, everything.scores[:k])


@pytest.fixture(scope="module")
def counted(postgres_url: str) -> Iterator[PostgresStores]:
    draw = random.Random(3)
    weights = [2.0**-place for place in range(10)]
    many = [Document(f"d{n}", " ".join(draw.choices("abcdefghij", weights, k=draw.randint(1, 30)))) for n in range(400)]
    with PostgresStores.create(postgres_url, "counted", language=None) as stores:
        stores.write(Batch(many), replace=False)
        yield stores
    drop(postgres_url, "counted")


@pytest.mark.slow
def test_an_approximate_index_says_its_recall(make_postgres: MakePostgres) -> None:
    stores = make_postgres()
    stores.write(
        Batch([Document(f"d{n}", "x", fields={"n": n}) for n in range(3000)], {"s": rows(3000)}), replace=False
    )
    exact = stores.search_vectors("s", rows(5), 20)
    assert 0.8 < stores.approximate("s", "hnsw", sample=20) <= 1
    assert stores.stats()["approximate"]["s"]["kind"] == "hnsw"
    assert [len(one) for one in stores.search_vectors("s", rows(5), 300)] == [300] * 5
    for options in ({"exact": True}, {"where": "n >= 0"}):
        again = stores.search_vectors("s", rows(5), 20, **options)  # type: ignore[arg-type]
        assert [one.numbers.tolist() for one in again] == [one.numbers.tolist() for one in exact]
    assert stores.approximate("s", "none") == 1 and stores.stats()["approximate"] == {}
    with pytest.raises(RequestError, match="'flat'; hnsw, ivfflat"):
        stores.approximate("s", "flat")  # type: ignore[arg-type]


@pytest.mark.slow
def test_long_queries_have_the_scores_of_short_ones(twins: Twins, monkeypatch: pytest.MonkeyPatch) -> None:
    queries = texts(11, 20, 80)
    short = twins[0].search_text(queries, 30)
    for few in (0, 1000):
        monkeypatch.setattr("consilience.stores.postgres.search._FEW_WORDS", few)
        for one, other in zip(short, twins[0].search_text(queries, 30), strict=True):
            assert one.numbers.tolist() == other.numbers.tolist() and np.allclose(one.scores, other.scores)
