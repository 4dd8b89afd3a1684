"""Token vectors and sparse vectors in the embedded stores."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from scipy.sparse import csr_array, random_array

from consilience.data.documents import Document
from consilience.errors import OutputError, RequestError, VerificationError
from consilience.models.token_vectors import TokenVectors, max_similarity
from consilience.stores import multi, sparse
from consilience.stores.embedded import EmbeddedStores
from consilience.stores.protocol import Batch, VectorSpace

MULTI = VectorSpace("m", 6, kind="multi")
SPARSE = VectorSpace("s", 50, "dot", kind="sparse")


def tokens(counts: list[int], seed: int) -> TokenVectors:
    drawn = np.random.default_rng(seed)
    values = [drawn.normal(size=(count, 6)).astype(np.float32) for count in counts]
    values = [one / np.linalg.norm(one, axis=1, keepdims=True) for one in values]
    return TokenVectors.from_list(values, dimension=6)


def terms(rows: int, seed: int) -> Any:
    return csr_array(random_array((rows, 50), density=0.1, rng=np.random.default_rng(seed)), dtype=np.float32)


def documents(count: int, first: int = 0) -> list[Document]:
    return [
        Document(f"d{place}", f"text {place}", fields={"even": place % 2 == 0}) for place in range(first, first + count)
    ]


@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.lists(st.integers(0, 5), min_size=1, max_size=12), st.lists(st.integers(0, 4), min_size=1, max_size=3))
def test_late_interaction_is_exact(
    tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch, counts: list[int], asked: list[int]
) -> None:
    monkeypatch.setattr(multi, "_BLOCK", 7)
    held, queries = tokens(counts, 1), tokens(asked, 2)
    with EmbeddedStores.create(tmp_path_factory.mktemp("m") / "i", [MULTI]) as stores:
        stores.write(Batch(documents(len(counts)), {"m": held}), replace=False)
        for k, found in zip((1, 3, 99), [stores.search_vectors("m", queries, k) for k in (1, 3, 99)], strict=True):
            for place, one in enumerate(found):
                scores = max_similarity(queries.text(place), held)
                wanted = [n for n in np.lexsort((np.arange(len(scores)), -scores)) if scores[n] > -np.inf][:k]
                if not asked[place]:
                    wanted = []
                assert one.scores == pytest.approx(scores[wanted], abs=1e-5)
                if len(set(np.round(scores[wanted], 5))) == len(wanted):
                    assert one.numbers.tolist() == wanted


def test_sparse_products_are_exact(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sparse, "_BLOCK", 30)
    held, queries = terms(20, 1), terms(4, 2)
    with EmbeddedStores.create(tmp_path / "i", [SPARSE]) as stores:
        stores.write(Batch(documents(20), {"s": held}), replace=False)
        for place, found in enumerate(stores.search_vectors("s", queries, 99, where="even = true")):
            scores = (held @ queries[[place]].T).toarray()[:, 0]
            wanted = {n for n in range(0, 20, 2) if scores[n] > 0}
            assert set(found.numbers.tolist()) == wanted
            assert found.scores == pytest.approx(scores[found.numbers], abs=1e-6)
            assert (np.diff(found.scores) <= 0).all()


@pytest.mark.parametrize("precision", ["float32", "int8"])
def test_documents_come_and_go(tmp_path: Path, precision: Any) -> None:
    space = VectorSpace("m", 6, kind="multi", precision=precision)
    tolerance = 1e-5 if precision == "float32" else 0.05
    counts = [3, 1, 4, 2]
    with EmbeddedStores.create(tmp_path / "i", [space, SPARSE]) as stores:
        held, words = tokens(counts, 1), terms(4, 1)
        stores.write(Batch(documents(4), {"m": held, "s": words}), replace=False)
        for _ in range(9):  # small segments become one
            stores.write(Batch(documents(1, 4), {"m": tokens([2], 3), "s": terms(1, 3)}), replace=True)
        stores.delete(["d0"])
        query = tokens([3], 4)
        everything = TokenVectors.from_list([*(held.text(n) for n in (1, 2, 3)), tokens([2], 3).text(0)])
        wanted = np.sort(max_similarity(query.text(0), everything))[::-1]
        for _ in range(2):
            found = stores.search_vectors("m", query, 10)[0]
            names = [stores.documents([n])[n].id for n in found.numbers.tolist()]
            assert set(names) == {"d1", "d2", "d3", "d4"}
            assert found.scores == pytest.approx(wanted, abs=tolerance)
            narrowed = stores.search_vectors("m", query, 10, where="even = true")[0]
            assert {stores.documents([n])[n].id for n in narrowed.numbers.tolist()} == {"d2", "d4"}
            stores.compact()
    with EmbeddedStores(tmp_path / "i") as reader:
        assert reader.spaces["m"].precision == precision
        assert reader.search_vectors("m", query, 10)[0].scores == pytest.approx(wanted, abs=tolerance)


def test_documents_without_tokens_can_be_alone(tmp_path: Path) -> None:
    with EmbeddedStores.create(tmp_path / "i", [MULTI, SPARSE]) as stores:
        empty = csr_array((2, 50), dtype=np.float32)
        stores.write(Batch(documents(2), {"m": tokens([0, 0], 0), "s": empty}), replace=False)
        assert len(stores.search_vectors("m", tokens([2], 1), 5)[0]) == 0
        assert len(stores.search_vectors("s", terms(1, 1), 5)[0]) == 0
    with EmbeddedStores(tmp_path / "i") as reader:
        assert len(reader) == 2


def test_what_does_not_fit_is_refused(tmp_path: Path) -> None:
    with pytest.raises(RequestError, match="precision 'int8'; float32, or int8 where kind is multi"):
        EmbeddedStores.create(tmp_path / "x", [VectorSpace("d", 3, precision="int8")])
    with pytest.raises(RequestError, match="kind 'tree'"):
        EmbeddedStores.create(tmp_path / "x", [VectorSpace("d", 3, kind="tree")])  # type: ignore[arg-type]
    with EmbeddedStores.create(tmp_path / "i", [MULTI, SPARSE]) as stores:
        assert stores.kinds == {"dense", "multi", "sparse"}
        with pytest.raises(RequestError, match="takes TokenVectors"):
            stores.search_vectors("m", np.ones((1, 6), np.float32), 1)
        with pytest.raises(RequestError, match="takes a sparse matrix"):
            stores.search_vectors("s", np.ones((1, 50), np.float32), 1)
        with pytest.raises(RequestError, match="49 terms; this space has 50"):
            stores.search_vectors("s", csr_array((1, 49), dtype=np.float32), 1)
        wrong = TokenVectors(np.full((1, 6), np.nan, np.float32), np.array([0, 1]))
        with pytest.raises(RequestError, match="NaN or infinity"):
            stores.write(Batch(documents(1), {"m": wrong, "s": terms(1, 1)}), replace=False)
        with pytest.raises(RequestError, match="2 vectors of 'm' for 1 documents"):
            stores.write(Batch(documents(1), {"m": tokens([1, 1], 0), "s": terms(1, 1)}), replace=False)
        assert len(stores) == 0


def test_damaged_files_are_named(tmp_path: Path) -> None:
    with EmbeddedStores.create(tmp_path / "i", [MULTI, SPARSE]) as stores:
        stores.write(Batch(documents(2), {"m": tokens([2, 1], 0), "s": terms(2, 1)}), replace=False)
    for pattern in ("m/*tokens.npy", "s/*weights.npy"):
        (path,) = (tmp_path / "i" / "vectors").glob(pattern)
        whole = path.read_bytes()
        path.write_bytes(whole[:-1] + bytes([whole[-1] ^ 1]))
        with pytest.raises(VerificationError, match=path.name):
            EmbeddedStores(tmp_path / "i")
        path.write_bytes(whole)


def test_an_index_whose_making_was_cut_off_is_made_again(tmp_path: Path) -> None:
    EmbeddedStores.create(tmp_path / "i", [MULTI]).close()
    (tmp_path / "i" / "consilience.json").unlink()
    (tmp_path / "i" / "writer.lock").unlink()
    with EmbeddedStores.create(tmp_path / "i", [MULTI]) as stores:
        stores.write(Batch(documents(1), {"m": tokens([1], 0)}), replace=False)
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "mine.txt").write_text("mine")
    with pytest.raises(OutputError, match="something is there already"):
        EmbeddedStores.create(tmp_path / "other", [MULTI])
    assert (tmp_path / "other" / "mine.txt").read_text() == "mine"
