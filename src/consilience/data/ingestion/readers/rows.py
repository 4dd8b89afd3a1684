"""Files of rows: JSON lines, CSV and TSV, Parquet; every row is a document. Read row by row, whatever their size."""

from __future__ import annotations

import csv
import json
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from consilience.data.ingestion.readers.protocol import Failed, Item, Notice, decoded, encoding_of, row_document
from consilience.errors import DataError, MissingExtraError

__all__ = ["read", "rows_in"]

_BATCH = 1024  # rows of a Parquet file in memory
_LONGEST = 1 << 30  # characters of a CSV field


def read(path: Path, name: str) -> Iterator[Item]:
    """Yield the documents of a file of rows; a row that cannot be read is a failure of its own."""
    number = 0
    for row in _ROWS[path.suffix.lower()](path, name):
        number += not isinstance(row, Notice)
        if isinstance(row, Notice | Failed):
            yield row
            continue
        own = f"{name}#{number}"
        try:
            yield row_document(row, own, name)
        except DataError as error:
            yield Failed(own, str(error))


def rows_in(path: Path) -> int:
    """Return about how many rows a file has, by its line ends or by what it says of itself."""
    if path.suffix.lower() == ".parquet":
        pyarrow, parquet = _arrow()
        try:
            return int(parquet.ParquetFile(path).metadata.num_rows)
        except (pyarrow.ArrowException, OSError):
            return 1
    return encoding_of(path)[1]


_Rows = Iterator["dict[str, Any] | Notice | Failed"]


def _jsonl(path: Path, name: str) -> _Rows:
    for number, line in enumerate(_lines(path), 1):
        if not line.strip():
            continue
        for found in decoded(line, f"{name} line {number}"):
            if isinstance(found, Notice):
                yield found
                continue
            try:
                row = json.loads(found)
            except (ValueError, RecursionError) as error:
                yield Failed(f"{name} line {number}", f"no JSON: {error}")
                continue
            if isinstance(row, dict):
                yield row
            else:
                yield Failed(f"{name} line {number}", f"an object is expected, found {type(row).__name__}")


def _lines(path: Path) -> Iterator[bytes]:
    with path.open("rb") as file:
        if file.read(2) not in (b"\xff\xfe", b"\xfe\xff"):
            file.seek(0)
            yield from file
            return
    with path.open(encoding="utf-16", errors="replace", newline="\n") as text:
        for line in text:
            yield line.encode("utf-8", "replace")


def _csv(path: Path, name: str) -> _Rows:
    encoding, _, wrong = encoding_of(path)
    if wrong >= 0:
        yield Notice(name, f"not UTF-8 at byte {wrong}: read as Windows-1252")
    csv.field_size_limit(_LONGEST)
    with path.open(encoding=encoding, errors="replace", newline="") as file:
        clean = (line.replace("\x00", "") for line in file)
        reader = csv.reader(clean, delimiter="\t" if path.suffix.lower() == ".tsv" else ",")
        try:
            header = next(reader, [])
            if twice := [column for column, count in Counter(header).items() if count > 1]:
                yield Notice(name, f"columns given twice get numbers: {', '.join(twice)}")
                header = [c if c not in header[:place] else f"{c}_{place + 1}" for place, c in enumerate(header)]
            for row in reader:
                if header and len(row) == len(header):
                    yield {column: _number(value) for column, value in zip(header, row, strict=True)}
                elif row:
                    text = f"{len(row)} columns, the first line has {len(header)}"
                    yield Failed(f"{name} line {reader.line_num}", text)
        except csv.Error as error:
            raise DataError(f"no CSV from line {reader.line_num} on: {error}") from error


def _number(text: str) -> Any:
    for kind in (int, float):
        try:
            value = kind(text)
        except ValueError:
            continue
        return value if str(value) == text and value - value == 0 else text  # 007, 1e5 and inf are texts
    return text


def _parquet(path: Path, name: str) -> _Rows:
    pyarrow, parquet = _arrow()
    try:
        for batch in parquet.ParquetFile(path).iter_batches(_BATCH):
            yield from batch.to_pylist()
    except (pyarrow.ArrowException, OSError) as error:
        raise DataError(f"no readable Parquet file ({error})") from error


def _arrow() -> tuple[Any, Any]:
    try:
        import pyarrow
        from pyarrow import parquet
    except ImportError:
        raise MissingExtraError("pyarrow", "search") from None
    return pyarrow, parquet


_ROWS = {".jsonl": _jsonl, ".ndjson": _jsonl, ".csv": _csv, ".tsv": _csv, ".parquet": _parquet}
