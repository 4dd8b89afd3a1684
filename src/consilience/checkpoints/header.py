"""The head of a safetensors file: read, checked by hand, and every fault reported together.

A file is 8 bytes (length of the head, little endian), the head (JSON: name to type, shape and byte range) and the
numbers, without gaps or overlaps. No number is read here.
"""

from __future__ import annotations

import json
import math
import os
import struct
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from consilience.checkpoints.dtypes import DTYPES
from consilience.checkpoints.sources import Stored
from consilience.core.hashing import xxh3_hex
from consilience.errors import CheckpointError

__all__ = ["MAX_HEADER_BYTES", "Header", "read_header"]

MAX_HEADER_BYTES = 100_000_000
"""The format's own limit on the length of the head."""

_SHOWN = 20


@dataclass(frozen=True, slots=True)
class Header:
    """What one file says about itself: its tensors in the order of their bytes, its free text, its identity."""

    path: Path
    tensors: Mapping[str, Stored]
    metadata: Mapping[str, str]
    size: int
    mtime_ns: int
    header_hash: str
    data_start: int


def read_header(path: Path) -> Header:
    """Read and check the head of one safetensors file.

    >>> import tempfile
    >>> path = Path(tempfile.mkdtemp()) / "model.safetensors"
    >>> head = b'{"w":{"dtype":"F32","shape":[2],"data_offsets":[0,8]}}'
    >>> _ = path.write_bytes(struct.pack("<Q", len(head)) + head + bytes(8))
    >>> read_header(path).tensors["w"].shape
    (2,)

    Raises CheckpointError with every fault found: a head that is cut off, too large or not JSON; unknown number
    types; byte ranges that overlap, leave gaps, do not fit the shape or run past the end of the file.

    Source: the format description of the safetensors project.
    """
    try:
        with path.open("rb", buffering=0) as file:
            status = os.fstat(file.fileno())
            head = _read_head(path, file, status.st_size)
    except OSError as error:
        raise CheckpointError(f"{path}: cannot be read ({error.strerror or error})") from error
    start = len(head)
    content, repeated = _parse(path, head[8:])
    metadata = content.pop("__metadata__", {})
    problems = [f"tensor {name!r} is listed twice" for name in repeated]
    if not _is_text_map(metadata):
        problems.append("__metadata__ is not an object of texts")
        metadata = {}
    entries = sorted(_entries(content, problems), key=lambda entry: (entry[3], entry[4]))
    _check_ranges(entries, status.st_size - start, problems)
    if problems:
        raise CheckpointError(_message(path, problems))
    tensors = {name: Stored(path, start + first, dtype, shape) for name, dtype, shape, first, _ in entries}
    return Header(path, tensors, metadata, status.st_size, status.st_mtime_ns, xxh3_hex(head), start)


_Entry = tuple[str, str, tuple[int, ...], int, int]


def _read_head(path: Path, file: Any, size: int) -> bytes:
    first = bytes(file.read(8))
    if first.startswith(b"version "):
        raise CheckpointError(f"{path}: a Git LFS pointer of {size} bytes, not the weights; fetch them: git lfs pull")
    if len(first) < 8:
        raise CheckpointError(f"{path}: {size} bytes, too short for a safetensors file; fetch or copy it again")
    (length,) = struct.unpack("<Q", first)
    if length > MAX_HEADER_BYTES:
        raise CheckpointError(
            f"{path}: its header claims {length} bytes, the format allows {MAX_HEADER_BYTES}; "
            "this is not a safetensors file, or it is damaged"
        )
    if 8 + length > size:
        raise CheckpointError(
            f"{path}: truncated: its header claims {length} bytes, the whole file has {size}; fetch or copy it again"
        )
    parts = [first]
    while length:
        part = bytes(file.read(length))
        if not part:
            raise CheckpointError(f"{path}: truncated while reading its header; fetch or copy it again")
        parts.append(part)
        length -= len(part)
    return b"".join(parts)


def _parse(path: Path, text: bytes) -> tuple[dict[str, Any], list[str]]:
    repeated: list[str] = []

    def collect(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        collected = dict(pairs)
        if len(collected) != len(pairs):
            counts = Counter(key for key, _ in pairs)
            repeated.extend(key for key, count in counts.items() if count > 1)
        return collected

    try:
        if not text.startswith(b"{"):
            raise ValueError("it does not start with '{'")
        content = json.loads(text.decode("utf-8"), object_pairs_hook=collect)
        "".join(content).encode()  # half of an escaped surrogate pair is no name
    except (ValueError, RecursionError) as error:
        raise CheckpointError(f"{path}: its header is not valid JSON ({error}); the file is damaged") from error
    return content, repeated


def _is_text_map(value: Any) -> bool:
    return isinstance(value, dict) and all(isinstance(text, str) for text in value.values())


def _natural(values: Any) -> bool:
    return isinstance(values, list) and all(type(value) is int and 0 <= value < 1 << 63 for value in values)


def _entries(content: Mapping[str, Any], problems: list[str]) -> list[_Entry]:
    """Return the well-formed tensors; report the others."""
    found: list[_Entry] = []
    for name, entry in content.items():
        if not isinstance(entry, dict) or set(entry) != {"dtype", "shape", "data_offsets"}:
            problems.append(f"tensor {name!r}: expected dtype, shape and data_offsets, found {entry!r:.80}")
            continue
        dtype, shape, offsets = entry["dtype"], entry["shape"], entry["data_offsets"]
        if not isinstance(dtype, str) or dtype not in DTYPES:
            problems.append(f"tensor {name!r}: number type {dtype!r} is not supported; known: {', '.join(DTYPES)}")
        elif not _natural(shape):
            problems.append(f"tensor {name!r}: shape {shape!r:.80} is not a list of sizes")
        elif not _natural(offsets) or len(offsets) != 2 or offsets[0] > offsets[1]:
            problems.append(f"tensor {name!r}: data_offsets {offsets!r:.80} are not a start and an end")
        else:
            first, last = offsets
            expected = math.prod(shape) * DTYPES[dtype].itemsize
            if last - first != expected:
                problems.append(
                    f"tensor {name!r}: {dtype} {shape} needs {expected} bytes, "
                    f"its data_offsets [{first}, {last}] hold {last - first}"
                )
            found.append((name, dtype, tuple(shape), first, last))
    return found


def _check_ranges(entries: list[_Entry], available: int, problems: list[str]) -> None:
    """Report byte ranges that overlap, leave gaps or leave the file; entries are in the order of their bytes."""
    end, before = 0, ""
    for name, _, _, first, last in entries:
        if first < end:
            problems.append(f"tensor {name!r}: its bytes [{first}, {last}] overlap those of {before!r}, end {end}")
        elif first > end:
            problems.append(f"tensor {name!r}: {first - end} bytes before it belong to no tensor (a gap at {end})")
        if last > available:
            problems.append(
                f"tensor {name!r}: its bytes [{first}, {last}] run past the end of the data ({available} bytes): "
                "the file is truncated; fetch or copy it again"
            )
        if last >= end:
            end, before = last, name
    if not problems and end != available:
        problems.append(f"{available - end} bytes after the last tensor belong to no tensor")


def _message(path: Path, problems: list[str]) -> str:
    if len(problems) == 1:
        return f"{path}: {problems[0]}"
    shown = "".join(f"\n  - {problem}" for problem in problems[:_SHOWN])
    more = f"\n  - and {len(problems) - _SHOWN} more" if len(problems) > _SHOWN else ""
    return f"{path}: {len(problems)} problems in its header{shown}{more}"
