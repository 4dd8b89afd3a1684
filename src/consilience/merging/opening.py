"""Opening the models of a recipe: where their paths start, adapters on their base, outputs that would eat inputs."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

from consilience.checkpoints.adapter_factors import open_factors
from consilience.checkpoints.model import Checkpoint
from consilience.checkpoints.open import open_checkpoint
from consilience.errors import ConsilienceError, Problems
from consilience.merging.request import MergeRequest

__all__ = ["first_model", "open_models", "own_inputs"]


def first_model(request: MergeRequest) -> str:
    """Return the name of the model that gives config and side files where there is no base."""
    if request.slices is not None:
        return request.slices[0].sources[0].model
    return next(name for name in request.models if name in request.experts)


def open_models(request: MergeRequest, planned: Mapping[str, Checkpoint], problems: Problems) -> dict[str, Checkpoint]:
    """Open every model; an expert that is an adapter alone is applied to the base.

    Without a base, and where all experts are adapters, each is opened as its factors, which are merged one by one.
    """
    models: dict[str, Checkpoint] = {}
    as_factors = request.base is None and all(
        _is_adapter(reference, _near(reference, request.folder)) for reference in request.models.values()
    )
    for name, reference in request.models.items():
        if reference in planned:
            models[name] = planned[reference]
            continue
        near = _near(reference, request.folder)
        if _is_adapter(reference, near) and request.base not in (None, name):
            reference = f"{request.models[str(request.base)]}+{reference}"
            near = _near(reference, request.folder)
        try:
            opened = (open_factors if as_factors else open_checkpoint)(reference, relative_to=near)
            models[name] = (
                _renamed(opened, request.renames[name], name, problems) if name in request.renames else opened
            )
        except ConsilienceError as error:
            text = str(error)
            known = text.startswith((reference, repr(reference)))
            problems.add(f"model {name!r}: {text}" if known else f"model {name!r} ({reference}): {text}")
    return models


def _renamed(model: Checkpoint, rename: Mapping[str, str], name: str, problems: Problems) -> Checkpoint:
    """Return the model with other beginnings of its tensors' names; the longest that fits counts."""
    beginnings = sorted(rename, key=len, reverse=True)

    def new(tensor: str) -> str:
        for old in beginnings:
            if tensor.startswith(old):
                return rename[old] + tensor[len(old) :]
        return tensor

    unused = [old for old in rename if not any(tensor.startswith(old) for tensor in model.tensors)]
    if unused:
        problems.add(f"rename of model {name!r}: no tensor begins with {', '.join(map(repr, unused))}")
    tensors = {new(tensor): source for tensor, source in model.tensors.items()}
    if len(tensors) != len(model.tensors):
        problems.add(f"rename of model {name!r}: two tensors would get one name; name longer beginnings")
    return replace(model, tensors=tensors, tied={new(alias): new(stored) for alias, stored in model.tied.items()})


def own_inputs(out: Path, models: Mapping[str, Checkpoint]) -> list[str]:
    """Refuse an output that would replace a model it is made from."""
    own = out.resolve()
    files = {name: (*m.files, *(f for a in m.adapters for f in a.files)) for name, m in models.items()}
    return [
        f"output {out}: model {name!r} is read from there; choose another place"
        for name, held in files.items()
        if any(own in file.path.resolve().parents for file in held)
    ]


def _near(reference: str, folder: Path) -> Path:
    """Return where relative paths of a reference start: the working directory if all are there, else the recipe's."""
    paths = [part.split("@")[0] for part in reference.split("+") if not part.startswith("package:")]
    return Path.cwd() if all(os.access(Path.cwd() / path, os.F_OK) for path in paths) else folder


def _is_adapter(reference: str, near: Path) -> bool:
    folder = near / reference
    return os.access(folder / "adapter_config.json", os.F_OK) and not os.access(folder / "config.json", os.F_OK)
