"""The plan of a merge: every read, every write, every problem, from headers, configs and tokenizers alone."""

from __future__ import annotations

import shutil
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np

from consilience.checkpoints.model import Checkpoint
from consilience.checkpoints.sources import Source, Stored
from consilience.checkpoints.writer import OutputTensor, Shard, plan_shards
from consilience.core.executor import default_workers
from consilience.core.hashing import fingerprint
from consilience.core.jobs import check_output, partial_folder
from consilience.errors import Problems, RecipeError
from consilience.merging.adapter_inputs import check_factors
from consilience.merging.adapter_output import adapter_tensors
from consilience.merging.artefacts import attach_artefacts, check_artefacts, open_artefacts
from consilience.merging.binding import check_method, unknown_parameters
from consilience.merging.building import TaskBuilder
from consilience.merging.coefficients import attach_coefficients, check_coefficients
from consilience.merging.filters import unmatched_filters
from consilience.merging.layout import lay_out, roles
from consilience.merging.method import find_method
from consilience.merging.opening import first_model, open_models, own_inputs
from consilience.merging.output_config import output_config
from consilience.merging.recorded import with_records
from consilience.merging.request import MergeRequest
from consilience.merging.task import DEFAULT_CHUNK, TensorTask, makes_whole
from consilience.merging.vocabulary import plan_vocabulary

__all__ = ["Plan", "make_plan"]

PLAN_VERSION = 1


@dataclass(frozen=True)
class Plan:
    """What a merge will do. Plain data; making it reads no weights.

    `read_bytes` counts every pass. `peak_memory` is an estimate of private memory in bytes beyond the interpreter and
    its libraries. `identity` changes when the request or any input file changes: a job resumes only the same plan.
    """

    request: MergeRequest
    out: Path | None
    donor: Checkpoint
    models: Mapping[str, Checkpoint]
    tasks: tuple[TensorTask, ...]
    shards: tuple[Shard, ...]
    config: Mapping[str, Any]
    side_files: Mapping[str, bytes]
    notices: tuple[str, ...]
    read_bytes: int
    write_bytes: int
    peak_memory: int
    workers: int
    identity: str
    stages: tuple[Plan, ...] = field(default=())

    def to_dict(self) -> dict[str, Any]:
        """Return the plan as plain data: inputs, outputs, bytes, memory, notices."""
        merged = sum(t.copy is None for t in self.tasks)
        return {
            "version": PLAN_VERSION,
            "method": self.request.method,
            "out": str(self.out) if self.out else None,
            "models": {name: _model(model) for name, model in self.models.items()},
            "tensors": {"merged": merged, "copied": len(self.tasks) - merged},
            "parameters": sum(t.numel for t in self.tasks),
            "read_bytes": self.read_bytes,
            "write_bytes": self.write_bytes,
            "peak_memory": self.peak_memory,
            "workers": self.workers,
            "files": [{"file": shard.file, "bytes": shard.size} for shard in self.shards],
            "notices": list(self.notices),
            "identity": self.identity,
            "stages": [stage.to_dict() for stage in self.stages],
        }

    def tensor_table(self) -> list[dict[str, Any]]:
        """Return one entry per output tensor: name, shape, type, what is done to it and where it is read."""
        return [
            {
                "name": t.name,
                "shape": list(t.shape),
                "dtype": t.dtype,
                "action": "copy" if t.copy is not None else t.method,
                "parameters": dict(t.parameters),
                **(_coefficients(t) if t.coefficients else {}),
                "reads": [
                    {"file": str(s.path), "offset": s.offset, "bytes": s.nbytes}
                    for source in t.sources
                    for s in source.inputs()
                ],
            }
            for t in self.tasks
        ]


def _coefficients(task: TensorTask) -> dict[str, Any]:
    assert task.coefficients is not None
    found: dict[str, Any] = {"coefficients": dict(zip(task.expert_names, task.coefficients.values, strict=True))}
    if task.coefficients.groups is not None:
        found["partition"] = {"groups": task.coefficients.groups, "seed": task.coefficients.seed}
    return found


def _model(model: Checkpoint) -> dict[str, Any]:
    return {
        "reference": model.reference,
        "parameters": model.parameters,
        "bytes": model.nbytes,
        "tensors": len(model.tensors),
        "fingerprint": model.fingerprint,
    }


def make_plan(request: MergeRequest, *, out: Path | None = None, workers: int | None = None) -> Plan:
    """Plan a merge; raise RecipeError listing every problem at once.

    `out` adds the checks of the output place and disk space. `workers` defaults to the processors at hand.
    """
    problems = Problems()
    if out is not None:
        problems.extend(check_output(out))
    root = partial_folder(out) / "stages" if out is not None else Path("stages")
    stages: list[Plan] = []
    planned: dict[str, Checkpoint] = {}
    for name, stage in request.stages:
        made = _make(stage, root / name, workers, planned, Problems(), stages=())
        stages.append(made)
        planned[name] = as_checkpoint(made, root / name, name)
    return _make(request, out, workers, planned, problems, tuple(stages))


def _make(
    request: MergeRequest,
    out: Path | None,
    workers: int | None,
    planned: Mapping[str, Checkpoint],
    problems: Problems,
    stages: tuple[Plan, ...],
) -> Plan:
    method = find_method(request.method)
    models = open_models(request, planned, problems)
    parts = [roles(request, part) for part in request.slices] if request.slices else [(request.experts, request.base)]
    for experts, base in parts:
        problems.extend(check_method(method, len(experts), has_base=base is not None))
    problems.extend(unknown_parameters(method, sorted(request.parameters.names())))
    problems.extend(check_artefacts(method, request.aux, request.experts))
    problems.extend(check_coefficients(request.coefficients, method, sorted(request.parameters.names())))
    artefacts = open_artefacts(request, method, problems)
    problems.extend(own_inputs(out, models) if out is not None else ())
    notices = list(request.warnings)
    check_factors(models, problems, notices)
    request = with_records(request, method, models, problems, notices)
    problems.raise_if_any(RecipeError, request.origin)
    donor = models[request.base or first_model(request)]
    origins, layers = lay_out(request, models, problems, notices)
    problems.raise_if_any(RecipeError, request.origin)
    notices.extend(unmatched_filters(request.parameters, origins))
    vocabulary = plan_vocabulary(request, models, problems, notices)
    problems.raise_if_any(RecipeError, request.origin)
    builder = TaskBuilder(request, method, models, vocabulary.tensors, problems, notices)
    tasks = tuple(builder.task(origin) for origin in origins)
    builder.finish()
    problems.raise_if_any(RecipeError, request.origin)
    held = {kind: [opened.tensors for opened in found] for kind, found in artefacts.items()}
    tasks = tuple(attach_artefacts(tasks, method, held, problems))
    tasks = tuple(attach_coefficients(tasks, request.coefficients, problems, notices.append))
    problems.raise_if_any(RecipeError, request.origin)
    config = output_config(donor, models, tasks, layers, vocabulary.config, notices)
    try:
        shards, write_bytes = _shards(request, tasks, donor)
    except RecipeError as error:
        raise RecipeError(f"{request.origin}: {error}") from None
    threads = workers or default_workers()
    if out is not None:
        problems.extend(_disk_problems(out, write_bytes, sum(s.write_bytes for s in stages)))
    problems.raise_if_any(RecipeError, request.origin)
    kept = tuple(name for name in donor.side_files if name not in vocabulary.dropped)
    return Plan(
        request,
        out,
        replace(donor, side_files=kept),
        models,
        tasks,
        shards,
        config,
        vocabulary.files,
        tuple(dict.fromkeys(notices)),
        sum(_passes(task) * task.pass_bytes for task in tasks),
        write_bytes,
        _peak_memory(tasks, threads),
        threads,
        _identity(request, models, artefacts, tasks, shards, stages),
        stages,
    )


def _shards(request: MergeRequest, tasks: tuple[TensorTask, ...], donor: Checkpoint) -> tuple[tuple[Shard, ...], int]:
    if request.adapter is not None:
        outputs = adapter_tensors(request.adapter, tasks)
        shards = plan_shards(outputs, file_names="adapter_model.safetensors")
    else:
        outputs = [OutputTensor(t.name, t.dtype, t.shape) for t in tasks]
        shards = plan_shards(outputs, file_names=donor.weight_names)
    return shards, sum(shard.size for shard in shards)


def _disk_problems(out: Path, needed: int, stages: int) -> list[str]:
    parent = out.parent
    while not parent.exists():
        parent = parent.parent
    free = shutil.disk_usage(parent).free
    partial = partial_folder(out)
    kept = sum(f.stat().st_blocks * 512 for f in partial.rglob("*") if f.is_file()) if partial.is_dir() else 0
    if needed + stages > free + kept:
        return [f"output {out}: needs {needed + stages:,} bytes, {free:,} are free on that disk"]
    return []


def _passes(task: TensorTask) -> int:
    return 1 if task.copy is not None or not task.numel else 1 + len(task.steps().surveys)


def _peak_memory(tasks: tuple[TensorTask, ...], workers: int) -> int:
    """Chunks of every thread and what computed sources hold (factors of adapters), or four copies of a tensor."""
    worst = 0
    largest = 0
    for task in tasks:
        if makes_whole(task):
            largest = max(largest, 4 * task.numel * max(np.dtype(task.work).itemsize, 4))
            continue
        width = np.dtype(task.work).itemsize if task.copy is None else 8
        chunk = min(DEFAULT_CHUNK, max(task.numel, 1))
        computed = sum(4 * s.nbytes for source in task.sources for s in source.inputs()[1:])
        worst = max(worst, chunk * width * (len(task.sources) + 4) + min(computed, 1 << 26))
    return max(workers * worst, largest)


def _identity(
    request: MergeRequest,
    models: Mapping[str, Checkpoint],
    artefacts: Mapping[str, list[Checkpoint]],
    tasks: tuple[TensorTask, ...],
    shards: tuple[Shard, ...],
    stages: tuple[Plan, ...],
) -> str:
    return fingerprint(
        {
            "plan": PLAN_VERSION,
            "models": {name: model.fingerprint for name, model in models.items()},
            **({"aux": {k: [c.fingerprint for c in found] for k, found in artefacts.items()}} if artefacts else {}),
            "tasks": [
                [
                    *(t.name, t.shape, t.dtype, t.method, dict(t.parameters), t.expert_names, t.seed, str(t.sources)),
                    *([str(t.coefficients)] if t.coefficients else ()),
                ]
                if t.copy is None
                else [t.name, t.shape, t.dtype, str(t.copy)]
                for t in tasks
            ],
            "files": [[s.file, s.size] for s in shards],
            "adapter": str(request.adapter),
            "stages": [stage.identity for stage in stages],
        }
    )


def as_checkpoint(plan: Plan, folder: Path, name: str) -> Checkpoint:
    """Return the model that a plan will write in `folder`, so that later plans can build on it."""
    tensors: dict[str, Source] = {
        place.tensor.name: Stored(folder / shard.file, place.offset, place.tensor.dtype, place.tensor.shape)
        for shard in plan.shards
        for place in shard.tensors
    }
    return replace(
        plan.donor, reference=name, name=name, tensors=tensors, config=dict(plan.config), adapters=(), files=()
    )
