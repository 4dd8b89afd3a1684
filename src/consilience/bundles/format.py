"""The bundle on disk: one folder, one versioned record, checksums of everything in it.

OUT/consilience.json      what it is: experts, kind of residual, how the shared weights were made, sizes, checksums
OUT/shared/               the model that all experts share and that stands where none fits: an ordinary model folder
OUT/experts/              what is kept of each expert beside it; the record says which files are whose
OUT/multi_task/           with masks only: the model that the masks choose from
OUT/router/               optional: router.json and router.safetensors
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from consilience.core.hashing import file_xxh3
from consilience.core.jobs import MANIFEST
from consilience.core.records import read_record
from consilience.errors import CheckpointError, Problems, VerificationError

__all__ = [
    "EXPERTS",
    "FORMAT",
    "ROUTER",
    "SHARED",
    "VERSION",
    "described_files",
    "is_bundle",
    "read_bundle",
    "verify_files",
]

FORMAT = "bundle"
VERSION = 1
SHARED = "shared"
EXPERTS = "experts"
ROUTER = "router"


def described_files(folder: Path) -> dict[str, dict[str, Any]]:
    """Return size and checksum of every file of a bundle but its record and its router, by relative path."""
    found = {}
    for path in sorted(folder.rglob("*")):
        relative = path.relative_to(folder).as_posix()
        if path.is_file() and relative != MANIFEST and not relative.startswith(f"{ROUTER}/"):
            found[relative] = {"bytes": path.stat().st_size, "xxh3": file_xxh3(path)}
    return found


def is_bundle(folder: Path) -> bool:
    """Return whether a folder looks like a bundle: a record beside shared weights."""
    return (folder / MANIFEST).is_file() and (folder / SHARED).is_dir()


def read_bundle(folder: Path) -> dict[str, Any]:
    """Read the record of a bundle and check that every file is there with its size.

    Raises RequestError where it is no bundle or of a newer format, CheckpointError naming missing and cut files.
    """
    record = read_record(folder / MANIFEST, FORMAT, VERSION)
    problems = Problems()
    for relative, known in record["files"].items():
        path = folder / relative
        size = path.stat().st_size if path.is_file() else None
        if size != known["bytes"]:
            found = "not there" if size is None else f"{size} bytes"
            problems.add(f"{path}: {found}, expected {known['bytes']} bytes")
    problems.raise_if_any(CheckpointError, f"bundle {folder}")
    return record


def verify_files(folder: Path, record: Mapping[str, Any], paths: list[str]) -> None:
    """Read files of a bundle and compare their checksums. Raises VerificationError naming those that differ."""
    problems = Problems()
    for relative in paths:
        if file_xxh3(folder / relative) != record["files"][relative]["xxh3"]:
            problems.add(f"{folder / relative}: it is not as it was written; make the bundle again or copy it anew")
    problems.raise_if_any(VerificationError, f"bundle {folder}")
