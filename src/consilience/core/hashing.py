"""Content hashes: xxh3 for checksums, canonical JSON for identities of plain data."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import xxhash

__all__ = ["canonical_json", "file_xxh3", "fingerprint", "xxh3_hex"]


def xxh3_hex(data: Any) -> str:
    """Return the xxh3-64 checksum of bytes or a contiguous buffer as 16 hexadecimal digits.

    >>> xxh3_hex(b"")
    '2d06800538d394c2'
    """
    return xxhash.xxh3_64_hexdigest(data)


def file_xxh3(path: Path, *, block: int = 1 << 22) -> str:
    """Return the xxh3-64 checksum of a file's bytes, read in blocks."""
    digest = xxhash.xxh3_64()
    buffer = bytearray(block)
    view = memoryview(buffer)
    with path.open("rb", buffering=0) as file:
        while count := file.readinto(buffer):
            digest.update(view[:count])
    return digest.hexdigest()


def canonical_json(value: Any) -> bytes:
    """Return the one JSON form of plain data: sorted keys, no spaces, UTF-8.

    >>> canonical_json({"b": 1, "a": [1.5, None]})
    b'{"a":[1.5,null],"b":1}'
    """
    text = json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=False, default=str)
    return text.encode()


def fingerprint(value: Any) -> str:
    """Return the xxh3-64 checksum of the canonical JSON of plain data.

    >>> fingerprint({"a": 1, "b": 2}) == fingerprint({"b": 2, "a": 1})
    True
    """
    return xxh3_hex(canonical_json(value))
