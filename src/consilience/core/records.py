"""Plain data on disk with a version: JSON objects that say which format they are."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from consilience.core.atomic import write_text_atomic
from consilience.errors import RequestError

__all__ = ["read_record", "write_record"]


def write_record(path: Path, kind: str, version: int, content: Mapping[str, Any]) -> None:
    """Write `content` as JSON headed by its format and version, whole or not at all."""
    record = {"format": f"consilience/{kind}", "version": version, **content}
    write_text_atomic(path, json.dumps(record, indent=1, ensure_ascii=False, default=str) + "\n")


def read_record(path: Path, kind: str, version: int) -> dict[str, Any]:
    """Read what `write_record` wrote.

    Raises RequestError when the file is missing, is not JSON, is of another kind or of a newer version.
    """
    try:
        record = json.loads(path.read_bytes())
    except FileNotFoundError:
        raise RequestError(f"{path}: no such file; expected a {kind} record") from None
    except ValueError as error:
        raise RequestError(f"{path}: not valid JSON ({error}); expected a {kind} record") from error
    found = record.get("format") if isinstance(record, dict) else None
    if found != f"consilience/{kind}":
        raise RequestError(f"{path}: its format is {found!r}, expected 'consilience/{kind}'")
    if not isinstance(record.get("version"), int) or record["version"] > version:
        raise RequestError(
            f"{path}: {kind} format version {record.get('version')!r}; this program reads up to {version}: update it"
        )
    return dict(record)
