"""Folders of files into documents: everything is read, skipped or failed, and counted as such."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from importlib import import_module
from pathlib import Path

from consilience.data.documents import Document, check_documents
from consilience.data.ingestion.readers.protocol import Failed, Notice
from consilience.errors import DataError, MissingExtraError

__all__ = ["READERS", "Reading"]

READERS = {
    **dict.fromkeys((".txt", ".text", ".rst", ".log", ".md", ".markdown"), "text"),
    **dict.fromkeys((".html", ".htm", ".xhtml"), "html"),
    ".pdf": "pdf",
    **dict.fromkeys((".jsonl", ".ndjson", ".csv", ".tsv", ".parquet", ".sqlite", ".sqlite3", ".db"), "rows"),
}
"""Suffix of a file -> module of `readers`."""

_SHOWN = 1000  # failures and notices that are kept


@dataclass
class Reading:
    """Walks over the documents of a file or folder, and counts.

    >>> import tempfile
    >>> folder = Path(tempfile.mkdtemp())
    >>> for name, text in {"a.txt": "open ports", "b.md": "# Lists\\n\\nSort them.", "c.txt": "", "d.xyz": "?"}.items():
    ...     _ = (folder / name).write_text(text)
    >>> reading = Reading(folder)
    >>> [document.id for document in reading], reading.counts["empty"], reading.counts["of no known kind"]
    (['a.txt', 'b.md'], 1, 1)

    Ids are paths below the folder, with "#" and the row's id or number for files of rows; the order is that of the
    names. Names that start with a dot are left out. `counts`: files, documents, empty ones, those of no known kind,
    copies (the same text and title as an earlier one, which are left out with `copies=False`), failed ones. `failures`
    and `notices` say which and why, the first thousand of each. Nothing that a file holds ends the walk.

    Raises DataError where there is nothing at the path.
    """

    path: Path
    copies: bool = True
    counts: Counter[str] = field(default_factory=Counter)
    failures: list[Failed] = field(default_factory=list)
    notices: list[Notice] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.path = Path(self.path)
        if not self.path.exists():
            raise DataError(f"{self.path}: no such file or folder")

    def files(self) -> Iterator[Path]:
        """Yield the files, in the order of their names; links that lead out of the folder are not followed."""
        if self.path.is_file():
            yield self.path
            return
        for folder, folders, names in os.walk(self.path):
            folders[:] = sorted(name for name in folders if not name.startswith("."))
            for name in sorted(names):
                if not name.startswith("."):
                    yield Path(folder) / name

    def __iter__(self) -> Iterator[Document]:
        seen: set[int] = set()
        for file in self.files():
            name = file.relative_to(self.path if self.path.is_dir() else self.path.parent).as_posix()
            self.counts["files"] += 1
            reader = READERS.get(file.suffix.lower())
            if reader is None:
                self.counts["of no known kind"] += 1
                self._note(Notice(name, f"files named {file.suffix or 'without a suffix'} are not read"))
                continue
            for document in self._documents(file, name, reader):
                if not document.text.strip():
                    self.counts["empty"] += 1
                    self._note(Notice(document.id, "empty"))
                    continue
                key = hash((document.title, document.text))
                if key in seen:
                    self.counts["copies"] += 1
                    if not self.copies:
                        self._note(Notice(document.id, "the same as an earlier one"))
                        continue
                seen.add(key)
                self.counts["documents"] += 1
                yield document

    def _documents(self, file: Path, name: str, reader: str) -> Iterator[Document]:
        """Yield the documents of a file; whatever is wrong with it is recorded."""
        try:
            if not file.stat().st_size:
                self.counts["empty"] += 1
                self._note(Notice(name, "empty"))
                return
            for found in import_module(f"consilience.data.ingestion.readers.{reader}").read(file, name):
                if isinstance(found, Notice):
                    self._note(found)
                elif isinstance(found, Failed):
                    self._fail(found)
                else:
                    check_documents([found])
                    yield found
        except MissingExtraError:
            raise
        except (DataError, OSError) as error:
            self._fail(Failed(name, str(error)))

    def _fail(self, failed: Failed) -> None:
        self.counts["failed"] += 1
        if len(self.failures) < _SHOWN:
            self.failures.append(failed)

    def _note(self, notice: Notice) -> None:
        if len(self.notices) < _SHOWN:
            self.notices.append(notice)
