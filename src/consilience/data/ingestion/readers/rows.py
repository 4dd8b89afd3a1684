"""Files of rows: JSON lines, CSV and TSV, Parquet, SQLite databases; every row is a document."""

from __future__ import annotations

import csv
import json
import sqlite3
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from consilience.data.ingestion.readers.protocol import Failed, Item, Notice, decoded, row_document
from consilience.errors import DataError, MissingExtraError

__all__ = ["read"]

_BATCH = 1024


def read(path: Path, name: str) -> Iterator[Item]:
    """Yield the documents of a file of rows; a row that cannot be read is a failure of its own."""
    for number, row in enumerate(_ROWS[path.suffix.lower()](path, name), 1):
        if isinstance(row, Notice | Failed):
            yield row
            continue
        own = f"{name}#{number}"
        try:
            yield row_document(row, own, name)
        except DataError as error:
            yield Failed(own, str(error))


_Rows = Iterator["dict[str, Any] | Notice | Failed"]


def _jsonl(path: Path, name: str) -> _Rows:
    with path.open("rb") as file:
        for number, line in enumerate(file, 1):
            if not line.strip():
                continue
            for found in decoded(line, f"{name} line {number}"):
                if isinstance(found, Notice):
                    yield found
                    continue
                try:
                    row = json.loads(found)
                except ValueError as error:
                    yield Failed(f"{name} line {number}", f"no JSON: {error}")
                    continue
                if isinstance(row, dict):
                    yield row
                else:
                    yield Failed(f"{name} line {number}", f"an object is expected, found {type(row).__name__}")


def _csv(path: Path, name: str) -> _Rows:
    text = ""
    for found in decoded(path.read_bytes(), name):
        if isinstance(found, Notice):
            yield found
        else:
            text = found
    csv.field_size_limit(1 << 30)
    reader = csv.reader(text.splitlines(keepends=True), delimiter="\t" if path.suffix.lower() == ".tsv" else ",")
    try:
        header = next(reader, None)
        for row in reader:
            if header and len(row) == len(header):
                yield {column: _number(value) for column, value in zip(header, row, strict=True)}
            elif row:
                wanted = len(header or ())
                yield Failed(f"{name} line {reader.line_num}", f"{len(row)} columns, the first line has {wanted}")
    except csv.Error as error:
        raise DataError(f"no CSV: {error}") from error


def _number(text: str) -> Any:
    for kind in (int, float):
        try:
            value = kind(text)
        except ValueError:
            continue
        return value if str(value) == text else text  # 007 and 1e5 are texts
    return text


def _parquet(path: Path, name: str) -> _Rows:
    try:
        import pyarrow
        from pyarrow import parquet
    except ImportError:
        raise MissingExtraError("pyarrow", "search") from None
    try:
        for batch in parquet.ParquetFile(path).iter_batches(_BATCH):
            yield from batch.to_pylist()
    except (pyarrow.ArrowException, OSError) as error:
        raise DataError(f"no readable Parquet file ({error})") from error


def _sqlite(path: Path, name: str) -> _Rows:
    try:
        database = sqlite3.connect(f"{path.resolve().as_uri()}?mode=ro", uri=True)
        tables = [
            row[0] for row in database.execute("SELECT name FROM sqlite_master WHERE type = 'table' ORDER BY name")
        ]
        for table in tables:
            quoted = table.replace('"', '""')
            found = database.execute(f'SELECT * FROM "{quoted}"')
            columns = [column[0] for column in found.description]
            for row in found:
                kept = {c: v for c, v in zip(columns, row, strict=True) if not isinstance(v, bytes)}
                key = kept.pop("id", None)
                yield {**kept, "table": table, **({} if key is None else {"_id": f"{table}.{key}"})}
        database.close()
    except sqlite3.Error as error:
        raise DataError(f"no readable SQLite database ({error})") from error


_ROWS = {
    ".jsonl": _jsonl,
    ".ndjson": _jsonl,
    ".csv": _csv,
    ".tsv": _csv,
    ".parquet": _parquet,
    ".sqlite": _sqlite,
    ".sqlite3": _sqlite,
    ".db": _sqlite,
}
