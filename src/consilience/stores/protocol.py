"""What every set of stores offers, embedded in a folder or in a server, and the plain data that goes in and out."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, Protocol

import numpy as np
from numpy.typing import NDArray

from consilience.data.documents import Document
from consilience.errors import Problems, RequestError
from consilience.stores.table import Edge
from consilience.stores.vectors import Found
from consilience.stores.where import Where

__all__ = ["Batch", "Changes", "Stores", "VectorSpace"]


@dataclass(frozen=True)
class VectorSpace:
    """A space that vectors of documents and queries are in.

    >>> VectorSpace("minilm", 384).similarity
    'cosine'

    encoder: what made the vectors: a reference, and the fingerprint of its weights; both empty where vectors are given.
    kind: "dense", one vector a document; "multi", one for every token, compared by late interaction; "sparse", weights
    of terms. precision: of the token vectors of "multi" as they are kept, "float32" or "int8".
    """

    name: str
    dimension: int
    similarity: Literal["cosine", "dot"] = "cosine"
    encoder: str = ""
    fingerprint: str = ""
    kind: Literal["dense", "multi", "sparse"] = "dense"
    precision: Literal["float32", "int8"] = "float32"

    def problems(self) -> list[str]:
        """Return what is wrong with the definition."""
        found = []
        if not self.name.replace("-", "_").isidentifier():
            found.append(f"space {self.name!r}: a name is of letters, digits, _ and -")
        if self.dimension < 1:
            found.append(f"space {self.name!r}: {self.dimension} dimensions; there is at least 1")
        if self.similarity not in ("cosine", "dot"):
            found.append(f"space {self.name!r}: similarity {self.similarity!r}; there are cosine and dot")
        if self.kind not in ("dense", "multi", "sparse"):
            found.append(f"space {self.name!r}: kind {self.kind!r}; there are dense, multi and sparse")
        if self.precision not in ("float32", "int8") or (self.precision == "int8" and self.kind != "multi"):
            found.append(f"space {self.name!r}: precision {self.precision!r}; float32, or int8 where kind is multi")
        return found


@dataclass(frozen=True)
class Batch:
    """Documents to be written in one commit, with their vectors by space (rows as the documents) and edges.

    vectors: float32 (documents, dimension) for dense spaces, `TokenVectors` for multi, a sparse matrix of scipy for
    sparse ones.
    """

    documents: Sequence[Document]
    vectors: Mapping[str, Any] = field(default_factory=dict)
    edges: Sequence[Edge] = ()


@dataclass(frozen=True)
class Changes:
    """What a commit did: numbers of documents that were new, that replaced others, and that went."""

    generation: int
    added: int = 0
    replaced: int = 0
    deleted: int = 0


class Stores(Protocol):
    """Documents, full text, vectors and edges with one commit.

    Every search takes a batch of queries and returns a `Found` for each; `where` is applied before the top k. Numbers
    are of documents and are looked up by `documents`.
    """

    kinds: frozenset[str]
    """Kinds of spaces that it can hold."""
    spaces: Mapping[str, VectorSpace]
    language: str | None
    facts: Mapping[str, Any]
    """What whoever made the index wants to be kept beside it."""

    def write(self, batch: Batch, *, replace: bool) -> Changes:
        """Add documents in one commit; ids that are there are replaced, or refused without `replace`."""
        ...

    def delete(self, ids: Iterable[str]) -> Changes:
        """Delete documents, with their vectors and edges, in one commit. Raises RequestError naming unknown ids."""
        ...

    def search_text(self, queries: Sequence[str], k: int, *, where: Where | None = None) -> list[Found]:
        """Return the documents that have words of the query, best first."""
        ...

    def search_vectors(self, space: str, queries: Any, k: int, *, where: Where | None = None) -> list[Found]:
        """Return the documents with the most similar vectors, best first; queries as the kind of the space has them."""
        ...

    def search_edges(
        self, entities: Sequence[Sequence[str]], k: int, *, hops: int = 1, where: Where | None = None
    ) -> list[Found]:
        """Return the documents that speak of entities or are linked to them, nearest and heaviest first."""
        ...

    def vectors(self, space: str, numbers: Sequence[int]) -> NDArray[np.float32]:
        """Return the vectors of documents of a dense space, (numbers, dimension); 0 for those that are gone."""
        ...

    def approximate(self, space: str, kind: Any = "hnsw", *, k: int = 10, sample: int = 100) -> float:
        """Give a dense space an approximate index of a kind, or none; return its recall at `k` against exact search."""
        ...

    def passing(self, where: Where | None = None) -> NDArray[np.int64]:
        """Return the numbers of all documents that a filter lets through, rising."""
        ...

    def documents(self, numbers: Iterable[int]) -> dict[int, Document]:
        """Return documents by number."""
        ...

    def known(self, ids: Iterable[str]) -> dict[str, str]:
        """Return the digests of those ids that are there."""
        ...

    def numbers(self, ids: Iterable[str]) -> dict[str, int]:
        """Return the numbers of those ids that are there."""
        ...

    def generation(self) -> int:
        """Return the number of the last commit."""
        ...

    def has_edges(self) -> bool:
        """Return whether documents speak of any relation."""
        ...

    def __len__(self) -> int:
        """Return the number of documents."""
        ...

    def all_ids(self) -> Iterable[str]:
        """Return the ids of all documents that are there."""
        ...

    def stats(self) -> dict[str, Any]:
        """Return numbers of documents, edges, vectors by space, bytes on disk, the generation."""
        ...

    def close(self) -> None:
        """Let go of files and connections."""
        ...


def check_batch(batch: Batch, spaces: Mapping[str, VectorSpace]) -> None:
    """Report vectors that are missing, too many, or of no space of the index. Raises RequestError."""
    problems = Problems()
    for name in spaces:
        if name not in batch.vectors:
            problems.add(f"no vectors for space {name!r}")
        elif (count := _rows(batch.vectors[name])) != len(batch.documents):
            problems.add(f"{count} vectors of {name!r} for {len(batch.documents)} documents")
    problems.extend(
        f"no space {name!r} here; there are {', '.join(spaces)}" for name in batch.vectors if name not in spaces
    )
    problems.extend(
        f"edge {e.head} -{e.relation}-> {e.tail}: weight {e.weight}; it is above 0"
        for e in batch.edges
        if not e.weight > 0
    )
    problems.raise_if_any(RequestError, "documents")


def _rows(vectors: Any) -> int:
    return int(vectors.shape[0]) if hasattr(vectors, "shape") else len(vectors)
