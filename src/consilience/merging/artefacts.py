"""Artefacts beside the weights (Fisher diagonals, Gram matrices, ...): found, checked, given to the tensors.

A recipe names them under `aux:`, one place per expert or one for all: a folder with a file `KIND.safetensors` (what
`consilience statistics` writes) or such a file. Tensors in it bear the names of the model's tensors.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

from consilience.checkpoints.model import Checkpoint
from consilience.checkpoints.open import open_checkpoint
from consilience.checkpoints.sources import Source
from consilience.errors import ConsilienceError, Problems, did_you_mean
from consilience.merging.method import Method
from consilience.merging.request import MergeRequest
from consilience.merging.task import TensorTask

__all__ = ["attach_artefacts", "check_artefacts", "open_artefacts"]

ALL = ""
"""The key of an artefact that all experts share."""

Held = Mapping[str, Sequence[Mapping[str, Source]]]


def check_artefacts(method: Method, aux: Mapping[str, Mapping[str, str]], experts: Sequence[str]) -> list[str]:
    """Return what is wrong with the artefacts a recipe names: unknown kinds, missing ones, missing experts."""
    problems = [
        f"aux.{kind}: method {method.name!r} does not use it"
        + (did_you_mean(kind, method.aux) if method.aux else " (it needs no artefacts)")
        for kind in aux
        if kind not in method.aux
    ]
    for kind, declared in method.aux.items():
        named = aux.get(kind)
        whose = f"{{expert: FOLDER}} for {', '.join(experts)}" if declared.per_expert else "FOLDER"
        if named is None:
            problems.append(
                f"aux.{kind}: method {method.name!r} needs it and none is given; gather it with `consilience "
                f"statistics` and write `aux: {{{kind}: {whose}}}`"
            )
        elif declared.per_expert:
            absent = [expert for expert in experts if expert not in named]
            extra = [name for name in named if name not in experts]
            if absent or extra:
                problems.append(f"aux.{kind}: expected {whose}; missing {absent}, unknown {extra}")
        elif ALL not in named:
            problems.append(f"aux.{kind}: all experts share one; write one folder, not one per expert")
    return problems


def open_artefacts(request: MergeRequest, method: Method, problems: Problems) -> dict[str, list[Checkpoint]]:
    """Open what the recipe names, one per expert in the order of their names, or a single one."""
    found: dict[str, list[Checkpoint]] = {}
    for kind, declared in method.aux.items():
        named = request.aux.get(kind)
        if named is None:
            continue
        keys = sorted(request.experts) if declared.per_expert else [ALL]
        for key in keys:
            if key not in named:
                continue
            try:
                opened = _open(named[key], kind, request.folder)
            except ConsilienceError as error:
                problems.add(f"aux.{kind}{f'.{key}' if key else ''}: {error}")
                continue
            found.setdefault(kind, []).append(opened)
    return found


def _open(reference: str, kind: str, folder: Path) -> Checkpoint:
    for near in (Path.cwd(), folder):
        for place in (near / reference / f"{kind}.safetensors", near / reference):
            if place.is_file():
                return open_checkpoint(place)
    places = dict.fromkeys((Path.cwd(), folder.resolve()))
    inside = sorted(path.parent for near in places for path in (near / reference).glob(f"*/{kind}.safetensors"))
    advice = f"`consilience statistics --kind {kind}` writes one"
    if inside:
        advice = "there is one in " + ", ".join(f"{reference}/{path.name}" for path in inside[:5])
    where = " and ".join(map(str, places))
    raise ConsilienceError(f"{reference}: no file {kind}.safetensors there (looked in {where}); {advice}")


def attach_artefacts(tasks: Sequence[TensorTask], method: Method, held: Held, problems: Problems) -> list[TensorTask]:
    """Return the tasks with their artefacts; records missing ones, wrong shapes and names that match no tensor."""
    for kind in method.aux:
        if kind not in held:
            problems.add(f"aux.{kind}: method {method.name!r} needs it and none is given")
    for kind in held:
        if kind not in method.aux:
            problems.add(f"aux.{kind}: method {method.name!r} does not use it{did_you_mean(kind, method.aux)}")
    if not method.aux or problems:
        return list(tasks)
    names = {task.name for task in tasks}
    for kind, parts in held.items():
        for part in parts:
            unknown = [name for name in part if name not in names]
            if unknown and method.aux[kind].shape != "any":
                problems.add(
                    f"aux.{kind}: {len(unknown)} name(s) that are no tensor of the model ({unknown[0]!r}, ...)"
                )
    return [_attached(task, method, held, problems) if task.copy is None else task for task in tasks]


def _attached(task: TensorTask, method: Method, held: Held, problems: Problems) -> TensorTask:
    aux: dict[str, tuple[Source | None, ...]] = {}
    for kind, declared in method.aux.items():
        found = tuple(part.get(task.name) for part in held[kind])
        expected = declared.expected(task.shape)
        owners = task.expert_names if declared.per_expert else ("",)
        for owner, source in zip(owners, found, strict=False):
            whose = f" of {owner!r}" if owner else ""
            if source is None and declared.every:
                problems.add(f"aux.{kind}{whose}: nothing for tensor {task.name!r}")
            elif source is not None and expected is not None and tuple(source.shape) != expected:
                problems.add(
                    f"aux.{kind}{whose}: {task.name!r} has shape {list(source.shape)}, expected {list(expected)}"
                )
        aux[kind] = found
    return replace(task, aux=aux)
