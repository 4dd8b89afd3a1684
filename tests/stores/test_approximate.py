"""Approximate indexes of embedded stores: recall is recorded, filters and new documents are exact, damage is named."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray

from consilience.data.documents import Document
from consilience.errors import OutputError, RequestError, VerificationError
from consilience.stores.embedded import EmbeddedStores
from consilience.stores.protocol import Batch, VectorSpace

SIZE = 16


def unit(rows: NDArray[np.floating]) -> NDArray[np.float32]:
    return np.asarray(rows / np.linalg.norm(rows, axis=1, keepdims=True), np.float32)


def filled(place: Path, count: int) -> tuple[EmbeddedStores, NDArray[np.float32]]:
    random = np.random.default_rng(3)
    vectors = unit(random.normal(size=(40, SIZE))[random.integers(0, 40, count)] + random.normal(size=(count, SIZE)))
    stores = EmbeddedStores.create(place, [VectorSpace("s", SIZE)])
    for start in range(0, count, 4000):
        rows = range(start, min(start + 4000, count))
        documents = [Document(f"d{row}", "text", fields={"part": row % 10}) for row in rows]
        stores.write(Batch(documents, {"s": vectors[rows.start : rows.stop]}), replace=False)
    return stores, vectors


@pytest.mark.parametrize(("kind", "count"), [("hnsw", 1500), ("ivfflat", 1500), ("ivfpq", 10_000)])
def test_recall_is_measured_and_kept_and_deletions_hold(tmp_path: Path, kind: str, count: int) -> None:
    stores, vectors = filled(tmp_path / "index", count)
    queries = unit(vectors[:30] + 0.1)
    exact = stores.search_vectors("s", queries, 10)
    recall = stores.approximate("s", kind, sample=50)  # type: ignore[arg-type]
    assert 0.8 < recall <= 1
    assert stores.stats()["approximate"]["s"] == {"kind": kind, "recall": recall, "k": 10, "sample": 50}
    found = stores.search_vectors("s", queries, 10)
    same = [len(set(a.numbers.tolist()) & set(b.numbers.tolist())) for a, b in zip(found, exact, strict=True)]
    assert np.mean(same) > 8
    best = next(place for place in range(30) if found[place].numbers[0] == exact[place].numbers[0])
    assert found[best].scores[0] == pytest.approx(exact[best].scores[0], abs=1e-5)

    gone = {int(number) for one in found for number in one.numbers[:3]}
    stores.delete([stores.documents([number])[number].id for number in gone])
    after = stores.search_vectors("s", queries, 10)
    assert all(len(one) == 10 and not gone & set(one.numbers.tolist()) for one in after)
    stores.write(Batch([Document("new", "text")], {"s": queries[:1]}), replace=False)
    newest = stores.search_vectors("s", queries[:1], 3)[0]
    assert stores.documents(newest.numbers)[int(newest.numbers[0])].id == "new" and len(newest) == 3

    stores.compact()
    assert stores.search_vectors("s", queries[:1], 3)[0].numbers.tolist() == newest.numbers.tolist()
    stores.close()
    with EmbeddedStores(tmp_path / "index") as again:
        assert again.search_vectors("s", queries[:1], 3)[0].numbers.tolist() == newest.numbers.tolist()
        with pytest.raises(OutputError):
            again.approximate("s")


def test_a_filter_is_exact_and_none_takes_it_away(tmp_path: Path) -> None:
    stores, vectors = filled(tmp_path / "index", 1200)
    exact = stores.search_vectors("s", vectors[:5], 5, where="part = 3")
    stores.approximate("s", "ivfflat")
    found = stores.search_vectors("s", vectors[:5], 5, where="part = 3")
    assert [one.numbers.tolist() for one in found] == [one.numbers.tolist() for one in exact]
    first = set((tmp_path / "index" / "approximate").iterdir())
    stores.approximate("s", "hnsw")
    assert not first & set((tmp_path / "index" / "approximate").iterdir()), "what it replaced is deleted"
    assert stores.approximate("s", "none") == 1 and stores.stats()["approximate"] == {}
    assert not list((tmp_path / "index" / "approximate").iterdir())


def test_what_cannot_be_made_is_said(tmp_path: Path) -> None:
    stores, _ = filled(tmp_path / "index", 20)
    with pytest.raises(RequestError, match="did you mean 'hnsw'"):
        stores.approximate("s", "hnws")  # type: ignore[arg-type]
    with pytest.raises(RequestError, match=r"20 documents; ivfpq takes at least"):
        stores.approximate("s", "ivfpq")
    with pytest.raises(RequestError, match="not in this index"):
        stores.approximate("t")
    assert stores.stats()["approximate"] == {} and len(stores.search_vectors("s", np.ones((1, SIZE)), 5)[0]) == 5


@pytest.mark.parametrize("what", ["changed", "cut", "gone"])
def test_a_damaged_file_is_named(tmp_path: Path, what: str) -> None:
    stores, vectors = filled(tmp_path / "index", 50)
    stores.approximate("s")
    stores.close()
    (path,) = (tmp_path / "index" / "approximate").glob("*.faiss")
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 255
    if what == "gone":
        path.unlink()
    else:
        path.write_bytes(content if what == "changed" else content[:-1])
    with EmbeddedStores(tmp_path / "index", write=True) as again:
        with pytest.raises(VerificationError, match=path.name):
            again.search_vectors("s", vectors[:1], 3)
        assert len(again.search_vectors("s", vectors[:1], 3, where="part >= 0")[0]) == 3
        again.approximate("s")
        assert len(again.search_vectors("s", vectors[:1], 3)[0]) == 3
