"""Applying a LoRA adapter: every tensor of the adapter finds its place in the model, or the model is refused."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import replace

from consilience.checkpoints.dtypes import DTYPES
from consilience.checkpoints.model import Adapter, Checkpoint, LowRankPair
from consilience.checkpoints.sources import LowRank, Source
from consilience.checkpoints.tied import untie
from consilience.errors import CheckpointError, Problems

__all__ = ["apply_adapter"]

_TRANSPOSING_MODELS = ("gpt2", "openai-gpt", "imagegpt", "decision_transformer")


def apply_adapter(checkpoint: Checkpoint, adapter: Adapter) -> Checkpoint:
    """Return the model with the adapter applied: W + scale * (B @ A), or the adapter's own tensor where it has one.

    Module names are matched as they are, or with one prefix added or left out for all of them (a bare encoder against
    a model with a head). Tied weights come apart when the adapter changes one of the names, as they do while the
    adapter runs on its base: the result gets a head of its own and a config that says so.

    Raises CheckpointError listing every tensor of the adapter that matches nothing or has another shape.
    """
    problems = Problems()
    tensors: dict[str, Source] = dict(checkpoint.tensors)
    tied = dict(checkpoint.tied)
    names = [*(f"{module}.weight" for module in adapter.pairs), *adapter.replaced]
    places = _places(names, [*tensors, *tied], problems)
    _untie_changed(adapter, places, tensors, tied)
    for name, stored in adapter.replaced.items():
        place = places.get(name)
        if place is not None:
            if stored.shape != tensors[place].shape:
                problems.add(_replaced_shape(name, stored.shape, tensors[place].shape))
            tensors[place] = stored
    transposed = _square_is_transposed(checkpoint, adapter, places, tensors)
    for module, pair in adapter.pairs.items():
        place = places.get(f"{module}.weight")
        if place is not None:
            source = _changed(module, tensors[place], pair, transposed, problems)
            if source is not None:
                tensors[place] = source
    made_for = f" (made for {adapter.base_model})" if adapter.base_model else ""
    problems.raise_if_any(CheckpointError, f"adapter {adapter.folder}{made_for} does not fit {checkpoint.reference}")
    untied = tied != dict(checkpoint.tied)
    return replace(
        checkpoint,
        reference=f"{checkpoint.reference}+{adapter.folder}",
        name=adapter.name,
        tensors=tensors,
        tied=tied,
        config=untie(checkpoint.config) if untied else checkpoint.config,
        adapters=(*checkpoint.adapters, adapter),
    )


def _places(names: Iterable[str], known: Iterable[str], problems: Problems) -> dict[str, str]:
    """Return the model's name for every tensor the adapter changes."""
    known = list(known)
    exact = set(known)
    places = {name: name for name in names if name in exact}
    left = [name for name in names if name not in exact]
    if not left:
        return places
    best: dict[str, str] = {}
    rivals: list[str] = []
    for added, dropped in _renamings(left, known):
        renamed = {name: added + name.removeprefix(dropped) for name in left if name.startswith(dropped)}
        fitting = {name: place for name, place in renamed.items() if place in exact}
        if len(fitting) > len(best):
            best, rivals = fitting, [added or f"without {dropped}"]
        elif fitting and len(fitting) == len(best) and fitting != best:
            rivals.append(added or f"without {dropped}")
    if len(rivals) > 1:
        problems.add(f"its module names fit several parts of the model: {', '.join(sorted(rivals)[:6])}; name one part")
    for name in left:
        if name not in best:
            problems.add(f"{name!r} matches no tensor of the model, such as {_similar(name, known)!r}")
    return places | best


def _renamings(left: list[str], known: list[str]) -> list[tuple[str, str]]:
    """Return the (prefix to add, prefix to drop) that bring at least one name into the model."""
    exact = set(known)
    found: dict[tuple[str, str], None] = {}
    for name in left:
        for place in known:
            if place.endswith((f".{name}", f"/{name}")):
                found[place[: -len(name)], ""] = None
        parts = name.split(".")
        for count in range(1, len(parts) - 1):
            dropped = ".".join(parts[:count]) + "."
            if name.removeprefix(dropped) in exact:
                found["", dropped] = None
        if found:
            break
    return list(found)


def _similar(name: str, known: list[str]) -> str:
    """Return the known name that shares the longest end with `name`."""
    parts = name.split(".")[::-1]

    def shared(other: str) -> int:
        count = 0
        for mine, theirs in zip(parts, other.split(".")[::-1], strict=False):
            if mine != theirs:
                break
            count += 1
        return count

    return max(known, key=shared)


def _untie_changed(
    adapter: Adapter, places: Mapping[str, str], tensors: dict[str, Source], tied: dict[str, str]
) -> None:
    """Give tied names whose tensor the adapter changes a tensor of their own, before anything is changed."""
    changed = set(places.values())
    stays_tied = bool(adapter.config.get("ensure_weight_tying"))
    for alias, stored in list(tied.items()):
        if alias in changed or (stored in changed and not stays_tied):
            tensors[alias] = tensors[stored]
            del tied[alias]


def _replaced_shape(name: str, found: tuple[int, ...], expected: tuple[int, ...]) -> str:
    if len(found) == len(expected) == 2 and found[1] == expected[1]:
        return (
            f"{name!r} is stored with {found[0]} rows, the model has {expected[0]}: the vocabulary was resized; "
            f"resize the model first (resize_token_embeddings({found[0]}), save_pretrained) and use that as the base"
        )
    return f"{name!r} has shape {found}, the model's has {expected}"


def _delta_shape(pair: LowRankPair) -> tuple[int, ...]:
    return (pair.b.shape[0], *pair.a.shape[1:])


def _square_is_transposed(
    checkpoint: Checkpoint, adapter: Adapter, places: Mapping[str, str], tensors: Mapping[str, Source]
) -> bool:
    """Whether square weights are stored as (in, out): judged by the other weights, else by what the configs say."""
    seen = set()
    for module, pair in adapter.pairs.items():
        place = places.get(f"{module}.weight")
        shape = _delta_shape(pair)
        if place is not None and pair.kind == "linear" and shape != shape[::-1]:
            seen.add(tensors[place].shape == shape[::-1])
    if len(seen) == 1:
        return seen.pop()
    return bool(adapter.config.get("fan_in_fan_out")) or checkpoint.config.get("model_type") in _TRANSPOSING_MODELS


def _changed(module: str, source: Source, pair: LowRankPair, transposed: bool, problems: Problems) -> LowRank | None:
    if DTYPES[source.dtype].kind != "float":
        problems.add(f"module {module!r}: the model stores its weight as {source.dtype}, which cannot take a change")
        return None
    shape = _delta_shape(pair)
    flip = shape[::-1]
    if pair.kind == "embedding":
        fits, flipped = source.shape == flip, True
    elif pair.kind == "linear" and shape != flip:
        fits, flipped = source.shape in (shape, flip), source.shape == flip
    elif pair.kind == "linear":
        fits, flipped = source.shape == shape, transposed
    else:
        fits, flipped = source.shape == shape, False
    if not fits and pair.kind != "embedding" and math.prod(source.shape) == math.prod(shape):
        fits = source.shape[0] == shape[0] and len(source.shape) > 2 and math.prod(shape[2:]) == 1
    if not fits:
        problems.add(
            f"module {module!r}: lora_B @ lora_A has shape {flip if pair.kind == 'embedding' else shape}, "
            f"the model's weight has {source.shape}; the adapter belongs to another base"
        )
        return None
    return LowRank(source, pair.a, pair.b, pair.scale, flipped)
