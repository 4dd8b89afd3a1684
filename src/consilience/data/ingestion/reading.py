"""Folders of files into documents: everything is read, skipped or failed, and counted as such."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from importlib import import_module
from pathlib import Path
from stat import S_ISREG
from urllib.parse import parse_qs, unquote

from consilience.data.documents import Document, check_documents
from consilience.data.ingestion.near_duplicates import NearDuplicates
from consilience.data.ingestion.readers.database import Database, is_database
from consilience.data.ingestion.readers.protocol import Failed, Item, Notice
from consilience.data.ingestion.readers.rows import rows_in as rows_in_file
from consilience.data.ingestion.readers.sqlite import check_tables
from consilience.data.ingestion.readers.sqlite import rows_in as rows_in_database
from consilience.errors import DataError, MissingExtraError, RequestError

__all__ = ["READERS", "ROWS", "Reading"]

READERS = {
    **dict.fromkeys((".txt", ".text", ".rst", ".log", ".md", ".markdown"), "text"),
    **dict.fromkeys((".html", ".htm", ".xhtml"), "html"),
    ".pdf": "pdf",
    **dict.fromkeys((".jsonl", ".ndjson", ".csv", ".tsv", ".parquet"), "rows"),
    **dict.fromkeys((".sqlite", ".sqlite3", ".db"), "sqlite"),
}
"""Suffix of a file -> module of `readers`."""

ROWS = frozenset(suffix for suffix, reader in READERS.items() if reader in ("rows", "sqlite"))
"""Suffixes of files whose rows are documents."""

_SHOWN = 1000  # failures and notices that are kept
_SQLITE = "sqlite:///"


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

    path: a file, a folder, "sqlite:///FILE?table=NAME" (`table` may be given again; without it all tables), or the
    address of a database server (see `readers.database`).

    Ids are paths below the folder, with "#" and the row's id or number for files of rows; the order is that of the
    names. Names that start with a dot are left out. `counts`: files; items, that is what the files hold: documents
    (those yielded), empty ones, those of no known kind, copies (the same text and title as an earlier one), near
    duplicates, links that are not followed, failed items; the sum of the others is the number of items, but that
    copies are documents as well where they are kept. Failed parts are pages of documents that are read nevertheless.
    copies: yield them. near_duplicates: leave out what is at least as similar to an earlier document (see
    `NearDuplicates`). `failures` and `notices` say which and why, the first thousand of each. Nothing that a file
    holds ends the walk.

    Raises DataError where there is nothing at the path, RequestError for a similarity that is none.
    """

    path: str | Path
    copies: bool = True
    near_duplicates: float | None = None
    counts: Counter[str] = field(default_factory=Counter)
    failures: list[Failed] = field(default_factory=list)
    notices: list[Notice] = field(default_factory=list)
    tables: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        self._unread: set[str] = set()
        if self.near_duplicates is not None:
            NearDuplicates(self.near_duplicates).close()
        given, self._folder = str(self.path), Path(self.path)
        self._database = Database.open(given) if is_database(given) else None
        self._address = given.startswith(_SQLITE)
        if self._database is not None:
            return
        if given.startswith(_SQLITE):
            file, _, query = given.removeprefix(_SQLITE).partition("?")
            options = parse_qs(query, keep_blank_values=True)
            if unknown := sorted(set(options) - {"table"}):
                raise RequestError(f"{given}: {', '.join(unknown)} is unknown; there is table")
            self._folder, self.tables = Path(unquote(file)), tuple(dict.fromkeys(options.get("table", ())))
            if self._folder.is_file():
                check_tables(self._folder, self.tables)
        if not self._folder.exists():
            raise DataError(f"{self._folder}: no such file or folder")

    @property
    def shown(self) -> str:
        """The path as it may be shown: an address without its password."""
        return str(self.path) if self._database is None else self._database.shown

    def files(self) -> Iterator[Path]:
        """Yield the files, in the order of their names; links are yielded, and not followed into folders."""
        yield from self._walk(None)

    def _walk(self, onerror: Callable[[OSError], None] | None) -> Iterator[Path]:
        if self._database is not None:
            return
        if not self._folder.is_dir():
            yield self._folder
            return
        for folder, folders, names in os.walk(self._folder, onerror=onerror):
            links = [name for name in folders if not name.startswith(".") and (Path(folder) / name).is_symlink()]
            folders[:] = sorted(name for name in folders if not name.startswith(".") and name not in links)
            for name in sorted([*names, *links]):
                if not name.startswith("."):
                    yield Path(folder) / name

    def expected(self) -> int:
        """Return about how many items the files hold, by counting rows and files; what cannot be read is one."""
        count = 0 if self._database is None else self._database.count()
        for file in self.files():
            try:
                regular = file.stat().st_size and S_ISREG(file.stat().st_mode)
                rows = _rows_in(file, self._reader(file), self.tables) if regular else 1
            except OSError:
                rows = 1
            count += max(rows, 1)
        return count

    def unread(self, name: str) -> bool:
        """Return whether the document with an id may be in a file or folder that could not be read."""
        places = [place for place, sign in enumerate(name) if sign in "#/."]
        return any(part in self._unread for part in [name, *(name[:place] for place in places)])

    def fail(self, failed: Failed) -> None:
        """Record an item that could not be read or used."""
        self.counts["failed parts" if failed.part else "failed"] += 1
        if not failed.part:
            self._unread.add(failed.item)
        if len(self.failures) < _SHOWN:
            self.failures.append(failed)

    def __iter__(self) -> Iterator[Document]:
        self._unread.clear()
        near = None if self.near_duplicates is None else NearDuplicates(self.near_duplicates)
        seen: set[int] = set()
        try:
            for documents in self._sources():
                for document in documents:
                    self.counts["items"] += 1
                    if not document.text.strip():
                        self._leave("empty", document.id, "empty")
                        continue
                    key = hash((document.title, document.text))
                    if key in seen:
                        if not self.copies:
                            self._leave("copies", document.id, "the same as an earlier one")
                            continue
                        self.counts["copies"] += 1
                    elif near is not None and (found := near.seen(document.id, document.full_text)):
                        self._leave("near duplicates", document.id, f"{found[1]:.2f} the same as {found[0]}")
                        continue
                    seen.add(key)
                    self.counts["documents"] += 1
                    yield document
        finally:
            if near is not None:
                near.close()

    def _sources(self) -> Iterator[Iterator[Document]]:
        if self._database is not None:
            yield self._rows(self._database)
        for file in self._walk(self._unwalked):
            yield self._documents(file, self._name(file))

    def _rows(self, database: Database) -> Iterator[Document]:
        """Yield the rows of a server's database; whatever is wrong with one is recorded."""
        try:
            yield from self._kept(database.read())
        except DataError as error:
            self.counts["items"] += 1
            self.fail(Failed(database.name, str(error)))

    def _name(self, file: Path) -> str:
        base = self._folder if self._folder.is_dir() else self._folder.parent
        name = file.relative_to(base).as_posix()
        return os.fsencode(name).decode("utf-8", "backslashreplace")  # a name need not be UTF-8

    def _reader(self, file: Path) -> str | None:
        return "sqlite" if self._address else READERS.get(file.suffix.lower())

    def _documents(self, file: Path, name: str) -> Iterator[Document]:
        """Yield the documents of a file; whatever is wrong with it is recorded."""
        self.counts["files"] += 1
        reader = self._reader(file)
        items = self.counts["items"]
        try:
            if file != self._folder and file.is_symlink() and not _within(file, self._folder):
                self._leave("links not followed", name, "a link to a folder or out of the folder; not followed", item=1)
                return
            if reader is None:
                text = f"files named {file.suffix or 'without a suffix'} are not read"
                self._leave("of no known kind", name, text, item=1)
                return
            before = file.stat()
            if not S_ISREG(before.st_mode):
                raise DataError("no regular file")
            if before.st_size:
                yield from self._read(file, name, reader)
            after = file.stat()
            if (before.st_size, before.st_mtime_ns) != (after.st_size, after.st_mtime_ns):
                self._note(Notice(name, "changed while it was read; index again"))
                self._unread.add(name)
            if self.counts["items"] == items:
                self._leave("empty", name, "empty", item=1)
        except MissingExtraError:
            raise
        except (DataError, OSError, RecursionError) as error:
            self.counts["items"] += 1
            self.fail(Failed(name, error.strerror or str(error) if isinstance(error, OSError) else str(error)))

    def _read(self, file: Path, name: str, reader: str) -> Iterator[Document]:
        module = import_module(f"consilience.data.ingestion.readers.{reader}")
        yield from self._kept(module.read(file, name, self.tables) if reader == "sqlite" else module.read(file, name))

    def _kept(self, walk: Iterable[Item]) -> Iterator[Document]:
        """Yield the documents of a walk, and record all else."""
        for found in walk:
            if isinstance(found, Notice):
                self._note(found)
                continue
            if isinstance(found, Failed):
                self.counts["items"] += not found.part
                self.fail(found)
                continue
            try:
                check_documents([found])
            except DataError as error:
                self.counts["items"] += 1
                self.fail(Failed(found.id, str(error)))
            else:
                yield found

    def _leave(self, count: str, name: str, text: str, *, item: int = 0) -> None:
        self.counts["items"] += item
        self.counts[count] += 1
        self._note(Notice(name, text))

    def _unwalked(self, error: OSError) -> None:
        self.counts["items"] += 1
        self.fail(Failed(self._name(Path(error.filename)), f"the folder cannot be read ({error.strerror})"))

    def _note(self, notice: Notice) -> None:
        if len(self.notices) < _SHOWN:
            self.notices.append(notice)


def _within(file: Path, folder: Path) -> bool:
    """Return whether a link leads to a file of the folder. Raises OSError for links to nothing and circles."""
    try:
        target = file.resolve(strict=True)
    except RuntimeError as error:  # how Python before 3.13 reports a circle
        raise OSError(str(error)) from error
    return target.is_file() and target.is_relative_to(folder.resolve())


def _rows_in(file: Path, reader: str | None, tables: tuple[str, ...]) -> int:
    if reader == "sqlite":
        return rows_in_database(file, tables)
    return rows_in_file(file) if reader == "rows" else 1
