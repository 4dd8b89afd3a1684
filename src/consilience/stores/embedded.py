"""The stores of an index in one folder: SQLite, tantivy and mapped vectors with one commit.

    consilience.json    format, spaces, language          text/    full text (tantivy)
    documents.sqlite    documents, edges, segments        vectors/SPACE/    segments

A commit writes segments and full text first and SQLite last. What a killed writer left is not in SQLite: its numbers
are in no snapshot and its files in no list, and the next writer deletes the files.
"""

from __future__ import annotations

import json
import shutil
import threading
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from consilience.core.atomic import storage_error
from consilience.core.jobs import MANIFEST
from consilience.core.records import read_record, write_record
from consilience.data.documents import Document, check_documents
from consilience.errors import DataError, OutputError, Problems, RequestError, VerificationError, did_you_mean
from consilience.stores.graph import nearby
from consilience.stores.kinds import KINDS, find_kind, join, take
from consilience.stores.lock import WriterLock
from consilience.stores.protocol import Batch, Changes, VectorSpace, check_batch
from consilience.stores.segments import Arrays, folder_bytes, open_segment, remove_segment, write_segment
from consilience.stores.table import Snapshot, Table
from consilience.stores.text import TextStore, damaged_files
from consilience.stores.vectors import Found, rows_of
from consilience.stores.where import Where, parse_where

__all__ = ["EmbeddedStores"]

_FORMAT, _VERSION = "index", 1
_SMALL, _MANY = 65_536, 8  # this many segments with fewer rows are made one
_BEGUN = ("documents.sqlite", "documents.sqlite-wal", "documents.sqlite-shm", "text")  # before there is a manifest
_REMEMBERED = 64  # filters of a generation
_TRIES = 5  # to read a state while a writer deletes what it replaced


class EmbeddedStores:
    """Documents, full text, vectors and edges in a folder; see `consilience.stores.protocol.Stores`.

    >>> import tempfile
    >>> folder = Path(tempfile.mkdtemp()) / "index"
    >>> stores = EmbeddedStores.create(folder, [VectorSpace("plane", 2)], language="english")
    >>> batch = Batch([Document("a", "sort a list"), Document("b", "open a file")], {"plane": np.eye(2)})
    >>> stores.write(batch, replace=False).added
    2
    >>> found = stores.search_vectors("plane", np.array([[0.1, 0.9]]), 1)[0]
    >>> stores.documents(found.numbers)[1].id
    'b'

    One process writes (`write=True`), any number read; a reader sees each commit whole, from its next search on.
    """

    kinds = frozenset(KINDS)

    def __init__(self, folder: str | Path, *, write: bool = False, verify: bool = True) -> None:
        self.folder, self._verify = Path(folder), verify
        self._lock = WriterLock(self.folder)
        if not (self.folder / MANIFEST).is_file():
            raise RequestError(f"{self.folder}: no index here (no {MANIFEST}); make one with `consilience index`")
        manifest = read_record(self.folder / MANIFEST, _FORMAT, _VERSION)
        self.spaces: Mapping[str, VectorSpace] = {one["name"]: VectorSpace(**one) for one in manifest["spaces"]}
        self.language: str | None = manifest["language"]
        self.facts: Mapping[str, Any] = manifest.get("facts", {})
        if write:
            self._lock.take()
        try:
            self.table = Table(self.folder / "documents.sqlite", write=write)
            self._segments: dict[str, Arrays] = {}
            self._opening, self._filtering = threading.Lock(), threading.Lock()
            self._masks: dict[tuple[int, str], NDArray[np.bool_]] = {}
            self._texts: dict[str, TextStore] = {}
            snapshot, _ = self._snapshot()
            if write:
                self._sweep(snapshot)
            if verify and (wrong := damaged_files(self.folder / snapshot.meta.get("text", "text"), _files(snapshot))):
                raise VerificationError("; ".join(wrong))
        except BaseException:
            self._lock.release()
            raise

    @classmethod
    def create(
        cls,
        folder: str | Path,
        spaces: Sequence[VectorSpace] = (),
        *,
        language: str | None = "english",
        facts: Mapping[str, Any] | None = None,
    ) -> EmbeddedStores:
        """Make an empty index and open it for writing; `facts` are kept beside it for who uses it.

        Raises OutputError where something is in the folder, RequestError for wrong spaces or languages.
        """
        place, problems = Path(folder), Problems()
        for space in spaces:
            problems.extend(space.problems())
        names = [space.name for space in spaces]
        problems.extend(f"two spaces are called {name!r}" for name in names if names.count(name) > 1)
        problems.raise_if_any(RequestError, "index")
        if place.exists() and not (place.is_dir() and all(one.name in _BEGUN for one in place.iterdir())):
            raise OutputError(f"{place}: something is there already; open it, or choose another place")
        if place.exists():  # what a killed call began and has no manifest is made again
            shutil.rmtree(place)
        try:
            place.mkdir(parents=True, exist_ok=True)
            Table.create(place / "documents.sqlite").close()
            TextStore.create(place / "text", language=language)
            described = [vars(space) for space in spaces]
            content = {"spaces": described, "language": language, "facts": dict(facts or {})}
            write_record(place / MANIFEST, _FORMAT, _VERSION, content)
        except OSError as error:
            raise storage_error(place, error) from error
        except RequestError:
            shutil.rmtree(place, ignore_errors=True)
            raise
        return cls(place, write=True)

    def __enter__(self) -> EmbeddedStores:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Let go of files, connections and the writer's lock."""
        self.table.close()
        self._segments.clear()
        self._lock.release()

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

    def _sweep(self, snapshot: Snapshot) -> None:
        """Delete the files of segments that no commit lists."""
        wanted = {name for name, *_ in snapshot.segments}
        for path in (self.folder / "vectors").glob("*/*.npy"):
            if path.name.split(".")[0] not in wanted:
                path.unlink(missing_ok=True)
        for path in self.folder.glob("text*"):
            if path.name != snapshot.meta.get("text", "text"):
                shutil.rmtree(path, ignore_errors=True)

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
        """Return the documents with the largest similarity, exactly; queries as the kind of the space has them."""
        asked = self._space(space)
        kind = find_kind(asked)
        vectors = kind.check(queries, asked, what="queries")
        snapshot, opened = self._snapshot()
        segments = [opened[name] for name, own, *_ in snapshot.segments if own == space]
        return kind.search(segments, vectors, _positive(k), self._live(snapshot, where), asked)

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

    def documents(self, numbers: Iterable[int]) -> dict[int, Document]:
        """Return documents by number."""
        return self.table.documents(numbers)

    def known(self, ids: Iterable[str]) -> dict[str, str]:
        """Return the digests of those ids that are there."""
        return {name: digest for name, (_, digest) in self.table.by_id(ids).items()}

    def numbers(self, ids: Iterable[str]) -> dict[str, int]:
        """Return the numbers of those ids that are there."""
        return {name: number for name, (number, _) in self.table.by_id(ids).items()}

    def has_edges(self) -> bool:
        """Return whether documents speak of any relation."""
        return bool(self.table.rows("SELECT 1 FROM edges LIMIT 1"))

    def __len__(self) -> int:
        return self.table.snapshot().count

    def all_ids(self) -> list[str]:
        """Return the ids of all documents that are there, in the order in which they came."""
        return [row[0] for row in self.table.rows("SELECT id FROM documents WHERE removed IS NULL ORDER BY number")]

    def write(self, batch: Batch, *, replace: bool) -> Changes:
        """Add documents in one commit; when this returns they are durable.

        Raises DataError for documents that cannot be stored and for ids that are there (without `replace`),
        RequestError for vectors that do not fit, OutputError for an index open for reading, StorageError.
        """
        self._writable()
        check_documents(batch.documents)
        check_batch(batch, self.spaces)
        ids = [document.id for document in batch.documents]
        vectors = {
            name: find_kind(space).check(batch.vectors[name], space, what=name, names=ids)
            for name, space in self.spaces.items()
        }
        there = self.table.by_id(ids)
        if there and not replace:
            shown = ", ".join(repr(name) for name in list(there)[:5])
            raise DataError(f"{len(there)} ids are in the index already: {shown}; upsert replaces them")
        first = self.table.reserve(len(ids))
        numbers = np.arange(first, first + len(ids), dtype=np.int64)
        written: list[tuple[str, int, Arrays]] = [
            (name, len(ids), {"numbers": numbers, **find_kind(space).arrays(vectors[name], space)})
            for name, space in (self.spaces.items() if ids else ())
        ]
        texts = [(first + place, document.full_text) for place, document in enumerate(batch.documents)]
        snapshot, _ = self._snapshot()
        retired = self._merged_with(snapshot, written)
        name = f"{first:012d}"
        try:
            described = [
                (space, rows, write_segment(self._folder(space), f"{name}-{space}", arrays))
                for space, rows, arrays in written
            ]
            files = self._text(snapshot).add(texts) if texts else _files(snapshot)
            with self.table.transaction() as commit:
                commit.remove(number for number, _ in there.values())
                commit.insert((first + place, document) for place, document in enumerate(batch.documents))
                commit.link(batch.edges)
                commit.retire(segment for segment, _ in retired)
                for space, rows, facts in described:
                    commit.add_segment(f"{name}-{space}", space, rows, facts)
                commit.set(text_files=json.dumps(files))
        except BaseException:
            self._sweep(self.table.snapshot())
            raise
        for segment, space in retired:
            remove_segment(self._folder(space), segment)
        return Changes(commit.generation, len(ids) - len(there), len(there))

    def delete(self, ids: Iterable[str]) -> Changes:
        """Delete documents in one commit. Raises RequestError naming ids that are not there."""
        self._writable()
        wanted = dict.fromkeys(ids)
        there = self.table.by_id(wanted)
        if lost := [name for name in wanted if name not in there]:
            shown = ", ".join(repr(name) for name in lost[:5])
            raise RequestError(f"{len(lost)} ids are not in the index: {shown}; nothing was deleted")
        with self.table.transaction() as commit:
            commit.remove(number for number, _ in there.values())
        return Changes(commit.generation, deleted=len(there))

    def compact(self) -> int:
        """Write everything anew without what was deleted or replaced, and return how many documents that were.

        Also makes a damaged full text again. Readers go on meanwhile.
        """
        self._writable()
        snapshot, _ = self._snapshot()
        name = f"text-{snapshot.generation + 1:012d}"
        shutil.rmtree(self.folder / name, ignore_errors=True)
        text = TextStore.create(self.folder / name, language=self.language)
        files = text.add((n, document.full_text) for batch in self.table.scan() for n, document in batch)
        described = []
        for space in self.spaces:
            merged = self._rows(snapshot, space, [n for n, own, *_ in snapshot.segments if own == space])
            if len(merged["numbers"]):
                new = f"{snapshot.generation + 1:012d}c-{space}"
                facts = write_segment(self._folder(space), new, merged)
                described.append((new, space, len(merged["numbers"]), facts))
        with self.table.transaction() as commit:
            count = commit.purge()
            commit.retire(segment for segment, *_ in snapshot.segments)
            for one, space, rows, facts in described:
                commit.add_segment(one, space, rows, facts)
            commit.set(text=name, text_files=json.dumps(files))
        self._texts = {name: text}
        self._sweep(self.table.snapshot())
        return count

    def _folder(self, space: str) -> Path:
        return self.folder / "vectors" / space

    def _rows(self, snapshot: Snapshot, space: str, names: Sequence[str]) -> dict[str, NDArray[Any]]:
        """Return the rows of segments whose documents are there, by number."""
        kind = find_kind(self.spaces[space])
        found = [
            take(kind, one, snapshot.live[one["numbers"]]) for one in map(self._segments.__getitem__, sorted(names))
        ]
        return join(found) if found else {"numbers": np.empty(0, np.int64)}

    def _merged_with(self, snapshot: Snapshot, written: list[tuple[str, int, Arrays]]) -> list[tuple[str, str]]:
        """Take small segments into those that are to be written, where there are many; return them."""
        retired = []
        for place, (space, rows, arrays) in enumerate(written):
            small = [n for n, own, count, _ in snapshot.segments if own == space and count < _SMALL]
            if len(small) >= _MANY:
                old = self._rows(snapshot, space, small)
                written[place] = (space, rows + len(old["numbers"]), join([old, arrays]))
                retired += [(n, space) for n in small]
        return retired

    def _writable(self) -> None:
        if not self._lock.held:
            raise OutputError(f"{self.folder}: this index is open for reading; open it with write=True")

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
            "segments": {space: sum(own == space for _, own, *_ in snapshot.segments) for space in self.spaces},
            "bytes": folder_bytes(self.folder),
        }


def _positive(k: int) -> int:
    if k < 1:
        raise RequestError(f"k is {k}; ask for at least 1")
    return k


def _files(snapshot: Snapshot) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(snapshot.meta.get("text_files", "{}"))
    return found
