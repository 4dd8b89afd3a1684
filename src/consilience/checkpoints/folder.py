"""What a model folder holds: components with weights, their shards, and the rules for choosing among files."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any

from consilience.checkpoints.refusals import foreign_weights
from consilience.errors import Problems

__all__ = ["LATE_INTERACTION", "Component", "find_components", "read_json", "weights_in"]

LATE_INTERACTION = "late_interaction"
"""The sub-folder with the projection of a late-interaction encoder; the file of its settings is `.json` beside it."""

_STEMS = ("model", "diffusion_pytorch_model", "pytorch_model")
_INDEX = ".safetensors.index.json"
_SHARD = re.compile(r"(?P<stem>.+)-(?P<number>\d{5})-of-(?P<total>\d{5})\.safetensors")
_ADAPTER_FILE = "adapter_model.safetensors"


@dataclass(frozen=True, slots=True)
class Component:
    """A folder with weights of its own.

    `prefix` is its place below the model's folder ("" for the folder itself), `file_name` what its weights are called
    when they fit one file, `shards` the files to read in order; `weight_map` is the index, where there is one.
    """

    prefix: str
    folder: Path
    file_name: str
    shards: tuple[Path, ...]
    weight_map: Mapping[str, str] | None = None


def find_components(folder: Path, problems: Problems) -> list[Component]:
    """Return the components of a model folder in the order in which they are declared.

    The folder itself counts unless it is a diffusers pipeline (model_index.json). Sub-folders count when
    modules.json (sentence-transformers) or model_index.json names them and they hold weights, and so does that of a
    late-interaction encoder's projection.
    """
    pipeline = folder / "model_index.json"
    prefixes = list(_pipeline_parts(pipeline, problems)) if pipeline.is_file() else ["", *_modules(folder, problems)]
    if (folder / f"{LATE_INTERACTION}.json").is_file():
        prefixes.append(LATE_INTERACTION)
    found = []
    for prefix in dict.fromkeys(prefixes):
        place = folder / prefix
        if place.is_dir():
            component = weights_in(place, prefix, problems)
            if component is not None:
                found.append(component)
    return found


def _pipeline_parts(path: Path, problems: Problems) -> Iterator[str]:
    for key, value in read_json(path, problems).items():
        if not key.startswith("_") and isinstance(value, list) and any(value) and _is_inside(key):
            yield key


def _modules(folder: Path, problems: Problems) -> Iterator[str]:
    """Yield the sub-folders of sentence-transformers modules, those of routers included."""
    path = folder / "modules.json"
    if not path.is_file():
        return
    listed = _load(path, problems)
    if not isinstance(listed, list) or not all(isinstance(entry, dict) for entry in listed):
        problems.add(f"{path}: expected a list of modules")
        return
    for entry in listed:
        prefix = str(entry.get("path", "")).strip("/")
        if not _is_inside(prefix):
            problems.add(f"{path}: the module path {prefix!r} leaves the folder")
        elif prefix:
            yield prefix
            router = folder / prefix / "router_config.json"
            if router.is_file():
                for name in read_json(router, problems).get("types", {}):
                    yield f"{prefix}/{name}"


def _is_inside(prefix: str) -> bool:
    return not PurePosixPath(prefix).is_absolute() and ".." not in PurePosixPath(prefix).parts


def weights_in(folder: Path, prefix: str, problems: Problems) -> Component | None:
    """Return the weights of one folder, or None where it has none; report what makes them unusable.

    Order of choice, that of transformers and diffusers: one file under a usual name, an index, a single file of any
    name, a complete set of numbered shards. Adapters do not count.
    """
    files = sorted(path for path in folder.iterdir() if path.is_file())
    names = [path.name for path in files if path.suffix == ".safetensors" and path.name != _ADAPTER_FILE]
    indices = [path.name for path in files if path.name.endswith(_INDEX)]
    for stem in _STEMS:
        if f"{stem}.safetensors" in names:
            return Component(prefix, folder, f"{stem}.safetensors", (folder / f"{stem}.safetensors",))
        if f"{stem}{_INDEX}" in indices:
            return _indexed(folder, prefix, f"{stem}{_INDEX}", problems)
    if len(indices) == 1:
        return _indexed(folder, prefix, indices[0], problems)
    if len(names) == 1 and not _SHARD.fullmatch(names[0]):
        return Component(prefix, folder, names[0], (folder / names[0],))
    if names:
        return _numbered(folder, prefix, names, problems)
    if _ADAPTER_FILE not in {path.name for path in files}:
        problems.extend(foreign_weights(path for path in files if path.stem != "adapter_model"))
    return None


def _indexed(folder: Path, prefix: str, index: str, problems: Problems) -> Component | None:
    path = folder / index
    weight_map = read_json(path, problems).get("weight_map")
    if not isinstance(weight_map, dict) or not all(isinstance(file, str) for file in weight_map.values()):
        problems.add(f"{path}: expected 'weight_map', an object of tensor names and file names")
        return None
    shards = []
    for name in sorted(set(weight_map.values())):
        if not _is_inside(name):
            problems.add(f"{path}: the file name {name!r} leaves the folder")
        elif not (folder / name).is_file():
            tensors = [tensor for tensor, file in weight_map.items() if file == name]
            problems.add(
                f"{path} names the shard {name!r} (for {len(tensors)} tensors, such as {tensors[0]!r}), "
                "which is missing; fetch or copy it again"
            )
        else:
            shards.append(folder / name)
    return Component(prefix, folder, index.removesuffix(".index.json"), tuple(shards), weight_map)


def _numbered(folder: Path, prefix: str, names: list[str], problems: Problems) -> Component | None:
    """Read shards without an index when they are a complete set of one model."""
    matches = [_SHARD.fullmatch(name) for name in names]
    sets = {(match["stem"], int(match["total"])) for match in matches if match}
    if len(sets) != 1 or None in matches:
        problems.add(
            f"{folder} holds several weight files and no index: {', '.join(names[:8])}"
            f"{', ...' if len(names) > 8 else ''}; name the file to open"
        )
        return None
    ((stem, total),) = sets
    missing = [f"{stem}-{number:05d}-of-{total:05d}.safetensors" for number in range(1, total + 1)]
    missing = [name for name in missing if name not in names]
    if missing:
        problems.add(f"{folder}: of {total} shards {len(missing)} are missing: {', '.join(missing[:4])}")
        return None
    return Component(prefix, folder, f"{stem}.safetensors", tuple(folder / name for name in names))


def read_json(path: Path, problems: Problems) -> dict[str, Any]:
    """Read a JSON object; report what is not one and return {} for it."""
    content = _load(path, problems)
    if content is not None and not isinstance(content, dict):
        problems.add(f"{path}: expected a JSON object, found {type(content).__name__}")
    return content if isinstance(content, dict) else {}


def _load(path: Path, problems: Problems) -> Any:
    try:
        return json.loads(path.read_bytes())
    except OSError as error:
        problems.add(f"{path}: cannot be read ({error.strerror or error})")
    except (ValueError, RecursionError) as error:
        problems.add(f"{path}: not valid JSON ({error})")
    return None
