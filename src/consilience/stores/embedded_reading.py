"""The stores of an index in one folder, as readers see them: each commit whole, from the next search on."""

from __future__ import annotations

import json
import threading
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from consilience.core.jobs import MANIFEST
from consilience.core.records import read_record
from consilience.data.documents import Document
from consilience.errors import RequestError, VerificationError, did_you_mean
from consilience.stores.approximate import Approximates, known
from consilience.stores.graph import nearby
from consilience.stores.kinds import find_kind
from consilience.stores.protocol import VectorSpace
from consilience.stores.segments import Arrays, folder_bytes, open_segment
from consilience.stores.table import Snapshot, Table
from consilience.stores.text import TextStore
from consilience.stores.vectors import Found, rows_of
from consilience.stores.where import Where, parse_where

__all__ = ["FORMAT", "VERSION", "EmbeddedReader", "text_files"]

FORMAT, VERSION = "index", 1
_REMEMBERED = 64  # filters of a generation
_TRIES = 5  # to read a state while a writer deletes what it replaced


class EmbeddedReader:
    """What `EmbeddedStores` reads and searches; see there."""

    def __init__(self, folder: Path, *, verify: bool) -> None:
        self.folder, self._verify = folder, verify
        if not (self.folder / MANIFEST).is_file():
            raise RequestError(f"{self.folder}: no index here (no {MANIFEST}); make one with `consilience index`")
        manifest = read_record(self.folder / MANIFEST, FORMAT, VERSION)
        self.spaces: Mapping[str, VectorSpace] = {one["name"]: VectorSpace(**one) for one in manifest["spaces"]}
        self.language: str | None = manifest["language"]
        self.facts: Mapping[str, Any] = manifest.get("facts", {})
        self._segments: dict[str, Arrays] = {}
        self._opening, self._filtering = threading.Lock(), threading.Lock()
        self._masks: dict[tuple[int, str], NDArray[np.bool_]] = {}
        self._texts: dict[str, TextStore] = {}
        self._approximates = Approximates(self.folder / "approximate", verify=verify)
        self.table: Table

    def _snapshot(self) -> tuple[Snapshot, dict[str, Arrays]]:
        """Return the committed state with its segments, mapped."""
        with self._opening:
            for _ in range(_TRIES):
                snapshot = self.table.snapshot()
                try:
                    self._segments = {
                        name: self._segments.get(name)
                        or open_segment(self.folder / "vectors" / space, name, files, verify=self._verify)
                        for name, space, _, files in snapshot.segments
                    }
                except FileNotFoundError as error:
                    lost = error.filename  # a writer may have replaced it meanwhile
                else:
                    return snapshot, self._segments
        raise VerificationError(f"{lost}: the file is gone; restore it from a copy, or index again")

    def _text(self, snapshot: Snapshot) -> TextStore:
        name = snapshot.meta.get("text", "text")
        with self._opening:
            if name not in self._texts:
                if not (self.folder / name / "meta.json").is_file():
                    place = self.folder / name
                    raise VerificationError(f"{place}: the full text is gone; compact the index to make it anew")
                self._texts = {name: TextStore(self.folder / name, self.language)}
            return self._texts[name]

    def _with_text(self) -> tuple[Snapshot, TextStore]:
        """Return the committed state with its full text, also where a writer is just making it anew."""
        while True:
            snapshot, _ = self._snapshot()
            try:
                return snapshot, self._text(snapshot)
            except VerificationError:
                if self._snapshot()[0].generation == snapshot.generation:
                    raise

    def _live(self, snapshot: Snapshot, where: Where | None) -> NDArray[np.bool_]:
        if where is None:
            return snapshot.live
        found = parse_where(where)
        key = (snapshot.generation, repr(found))
        with self._filtering:
            if key not in self._masks:
                if len(self._masks) >= _REMEMBERED or any(made != snapshot.generation for made, _ in self._masks):
                    self._masks = {}
                self._masks[key] = self.table.passing(found, snapshot)
            return self._masks[key]

    def _space(self, name: str) -> VectorSpace:
        if name not in self.spaces:
            raise RequestError(f"space {name!r} is not in this index{did_you_mean(name, self.spaces)}")
        return self.spaces[name]

    def search_text(self, queries: Sequence[str], k: int, *, where: Where | None = None) -> list[Found]:
        """Return the documents that have words of the query, best first, by BM25."""
        snapshot, text = self._with_text()
        return text.search(queries, _positive(k), self._live(snapshot, where), version=snapshot.generation)

    def search_vectors(self, space: str, queries: Any, k: int, *, where: Where | None = None) -> list[Found]:
        """Return the documents with the largest similarity; queries as the kind of the space has them.

        Exactly, but for a space with an approximate index (see `approximate`) and no filter.
        """
        asked = self._space(space)
        kind = find_kind(asked)
        vectors = kind.check(queries, asked, what="queries")
        snapshot, opened = self._snapshot()
        segments = [opened[name] for name, own, *_ in snapshot.segments if own == space]
        live = self._live(snapshot, where)
        near = self._approximates.find(space, snapshot.meta) if where is None else None
        if near is not None:
            return near.search(segments, vectors, _positive(k), live)
        return kind.search(segments, vectors, _positive(k), live, asked)

    def vectors(self, space: str, numbers: Sequence[int]) -> NDArray[np.float32]:
        """Return the vectors of documents of a dense space, (numbers, dimension); 0 for those that are gone."""
        asked = self._space(space)
        snapshot, opened = self._snapshot()
        segments = [opened[name] for name, own, *_ in snapshot.segments if own == space]
        return rows_of(segments, space, asked.kind, asked.dimension, numbers)

    def search_edges(
        self, entities: Sequence[Sequence[str]], k: int, *, hops: int = 1, where: Where | None = None
    ) -> list[Found]:
        """Return the documents that speak of entities or of what is linked to them, nearest and heaviest first."""
        snapshot, _ = self._snapshot()
        live = self._live(snapshot, where)
        return [nearby(self.table, snapshot, start, _positive(k), hops, live) for start in entities]

    def passing(self, where: Where | None = None) -> NDArray[np.int64]:
        """Return the numbers of all documents that a filter lets through, rising."""
        snapshot, _ = self._snapshot()
        return np.flatnonzero(self._live(snapshot, where))

    def documents(self, numbers: Iterable[int]) -> dict[int, Document]:
        """Return documents by number."""
        return self.table.documents(numbers)

    def known(self, ids: Iterable[str]) -> dict[str, str]:
        """Return the digests of those ids that are there."""
        return {name: digest for name, (_, digest) in self.table.by_id(ids).items()}

    def numbers(self, ids: Iterable[str]) -> dict[str, int]:
        """Return the numbers of those ids that are there."""
        return {name: number for name, (number, _) in self.table.by_id(ids).items()}

    def generation(self) -> int:
        """Return the number of the last commit."""
        return self._snapshot()[0].generation

    def has_edges(self) -> bool:
        """Return whether documents speak of any relation."""
        return bool(self.table.rows("SELECT 1 FROM edges LIMIT 1"))

    def __len__(self) -> int:
        return self.table.snapshot().count

    def all_ids(self) -> list[str]:
        """Return the ids of all documents that are there, in the order in which they came."""
        return [row[0] for row in self.table.rows("SELECT id FROM documents WHERE removed IS NULL ORDER BY number")]

    def stats(self) -> dict[str, Any]:
        """Return numbers of documents, of edges, of rows that compacting would drop, bytes on disk, the generation."""
        snapshot, _ = self._snapshot()
        gone = self.table.rows("SELECT count(*) FROM documents WHERE removed IS NOT NULL")[0][0]
        edges = self.table.rows("SELECT count(*) FROM edges")[0][0]
        return {
            "documents": snapshot.count,
            "gone": gone,
            "edges": edges,
            "generation": snapshot.generation,
            "approximate": {
                space: {key: facts[key] for key in ("kind", "recall", "k", "sample")}
                for space in self.spaces
                if (facts := known(space, snapshot.meta)) is not None
            },
            "segments": {space: sum(own == space for _, own, *_ in snapshot.segments) for space in self.spaces},
            "bytes": folder_bytes(self.folder),
        }


def _positive(k: int) -> int:
    if k < 1:
        raise RequestError(f"k is {k}; ask for at least 1")
    return k


def text_files(snapshot: Snapshot) -> dict[str, Any]:
    """Return the files of the full text with their checksums."""
    found: dict[str, Any] = json.loads(snapshot.meta.get("text_files", "{}"))
    return found
