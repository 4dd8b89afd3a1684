"""Everything of a model folder that is not weights: found when it is opened, carried when a result is written."""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Collection, Mapping
from pathlib import Path

from consilience.checkpoints.model import Checkpoint
from consilience.checkpoints.refusals import WEIGHT_SUFFIXES
from consilience.core.atomic import storage_error, write_bytes_atomic

__all__ = ["copy_side_files", "find_side_files", "is_weight_file"]

_LEFT_OUT = {
    "README.md",
    "adapter_config.json",
    "consilience.json",
    "expert.json",
    "mergekit_config.yml",
    "trainer_state.json",
}
_INDEX = re.compile(r".*\.(safetensors|bin)\.index(\..+)?\.json")
_FOREIGN_FOLDERS = {"onnx", "openvino", "original", "coreml", "runs", "__pycache__", "logs"}


def is_weight_file(path: Path) -> bool:
    """Whether a file holds weights, in any format, or is the index of such files.

    >>> is_weight_file(Path("model.safetensors.index.json")), is_weight_file(Path("tokenizer.json"))
    (True, False)
    """
    return path.suffix in WEIGHT_SUFFIXES or _INDEX.fullmatch(path.name) is not None


def find_side_files(
    folder: Path, components: Collection[str], used: Collection[Path]
) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """Return (side files, weight files that are not in `used`), as sorted relative paths with "/".

    Left out: model cards, hidden files, records of training, and whole sub-folders that hold weights of something
    else (exports to other formats, training checkpoints).
    """
    side: list[str] = []
    foreign: list[str] = []
    kept = {part for prefix in components for part in _with_parents(prefix)}

    def visit(place: Path, prefix: str) -> None:
        entries = sorted(entry for entry in place.iterdir() if not entry.name.startswith("."))
        weights = [entry for entry in entries if entry.is_file() and is_weight_file(entry)]
        foreign.extend(
            entry.relative_to(folder).as_posix()
            for entry in weights
            if entry not in used and not _INDEX.fullmatch(entry.name)
        )
        if weights and prefix and prefix not in components:
            return
        for entry in entries:
            relative = f"{prefix}/{entry.name}" if prefix else entry.name
            if entry.is_dir():
                if relative in kept or (entry.name not in _FOREIGN_FOLDERS and not entry.is_symlink()):
                    visit(entry, relative)
            elif not is_weight_file(entry) and entry.name not in _LEFT_OUT:
                side.append(relative)

    visit(folder, "")
    return tuple(sorted(side)), tuple(sorted(foreign))


def _with_parents(prefix: str) -> list[str]:
    parts = prefix.split("/")
    return ["/".join(parts[: count + 1]) for count in range(len(parts))]


def copy_side_files(checkpoint: Checkpoint, folder: Path, overrides: Mapping[str, bytes] | None = None) -> list[str]:
    """Copy the side files of an opened model to `folder` and return the relative paths written, sorted.

    `overrides` maps relative paths to contents that are written instead, or in addition. config.json is written from
    `checkpoint.config` where that differs from the file (an adapter can untie weights).

    Raises StorageError when the disk is full or a file cannot be read or written.
    """
    contents = dict(overrides or {})
    for relative in checkpoint.side_files:
        if relative in contents:
            continue
        source, target = checkpoint.folder / relative, folder / relative
        try:
            if relative == "config.json" and checkpoint.config != json.loads(source.read_bytes()):
                contents[relative] = (json.dumps(checkpoint.config, indent=2, ensure_ascii=False) + "\n").encode()
                continue
            target.parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(source, target)
        except OSError as error:
            raise storage_error(target, error) from error
    for relative, content in contents.items():
        target = folder / relative
        target.parent.mkdir(parents=True, exist_ok=True)
        write_bytes_atomic(target, content)
    return sorted({*checkpoint.side_files, *contents})
