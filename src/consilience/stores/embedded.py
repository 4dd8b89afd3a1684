"""The stores of an index in one folder: SQLite, tantivy and mapped vectors with one commit.

    consilience.json    format, spaces, language          text/    full text (tantivy)
    documents.sqlite    documents, edges, segments        vectors/SPACE/    segments
                                                          approximate/      indexes of faiss, where asked for

A commit writes segments and full text first and SQLite last. What a killed writer left is not in SQLite: its numbers
are in no snapshot and its files in no list, and the next writer deletes the files.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from consilience.core.atomic import storage_error
from consilience.core.jobs import MANIFEST
from consilience.core.records import write_record
from consilience.data.documents import check_documents
from consilience.errors import DataError, OutputError, Problems, RequestError, VerificationError
from consilience.stores.approximate import ApproximateKind, kept
from consilience.stores.embedded_reading import FORMAT, VERSION, EmbeddedReader, text_files
from consilience.stores.kinds import KINDS, find_kind, join, take
from consilience.stores.lock import WriterLock
from consilience.stores.protocol import Batch, Changes, VectorSpace, check_batch
from consilience.stores.segments import Arrays, remove_segment, write_segment
from consilience.stores.table import Snapshot, Table
from consilience.stores.text import TextStore, damaged_files
from consilience.stores.vectors import check_dense

__all__ = ["EmbeddedStores"]

_SMALL, _MANY = 65_536, 8  # this many segments with fewer rows are made one
_BEGUN = ("documents.sqlite", "documents.sqlite-wal", "documents.sqlite-shm", "text")  # before there is a manifest


class EmbeddedStores(EmbeddedReader):
    """Documents, full text, vectors and edges in a folder; see `consilience.stores.protocol.Stores`.

    >>> import tempfile
    >>> from consilience.data.documents import Document
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
        super().__init__(Path(folder), verify=verify)
        self._lock = WriterLock(self.folder)
        if write:
            self._lock.take()
        try:
            self.table = Table(self.folder / "documents.sqlite", write=write)
            snapshot, _ = self._snapshot()
            if write:
                self._sweep(snapshot)
            place = self.folder / snapshot.meta.get("text", "text")
            if verify and (wrong := damaged_files(place, text_files(snapshot))):
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
            write_record(place / MANIFEST, FORMAT, VERSION, content)
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

    def _sweep(self, snapshot: Snapshot) -> None:
        """Delete the files of segments that no commit lists."""
        wanted = {name for name, *_ in snapshot.segments}
        for path in (self.folder / "vectors").glob("*/*.npy"):
            if path.name.split(".")[0] not in wanted:
                path.unlink(missing_ok=True)
        self._approximates.sweep(snapshot.meta)
        for path in self.folder.glob("text*"):
            if path.name != snapshot.meta.get("text", "text"):
                shutil.rmtree(path, ignore_errors=True)

    def approximate(self, space: str, kind: ApproximateKind = "hnsw", *, k: int = 10, sample: int = 100) -> float:
        """Give a dense space an approximate index (or take it away: "none"); return its recall at `k` against exact.

        kind: "hnsw" a graph, "ivfflat" lists, "ivfpq" lists of quantised vectors, the best of which are compared
        exactly. The recall is of `sample` of the space's own vectors as queries, and kept (see `stats`). Searches
        without a filter use it from now on; documents that come later are compared exactly until it is made again.
        """
        self._writable()
        check_dense(space, self._space(space).kind)
        snapshot, opened = self._snapshot()
        facts = None
        if kind != "none":
            names = [name for name, own, *_ in snapshot.segments if own == space]
            rows, segments = self._rows(snapshot, space, names), [opened[name] for name in names]
            generation = snapshot.generation + 1
            facts = self._approximates.make(space, kind, rows, segments, generation=generation, k=k, sample=sample)
        with self.table.transaction() as commit:
            commit.set(**kept(space, facts))
        self._approximates.sweep(self.table.snapshot().meta)
        return 1.0 if facts is None else float(facts["recall"])

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
            files = self._text(snapshot).add(texts) if texts else text_files(snapshot)
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
