"""The plan of a merge: every read, every write, every problem, from headers, configs and tokenizers alone."""

from __future__ import annotations

import os
import shutil
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np

from consilience.checkpoints.dtypes import DTYPES
from consilience.checkpoints.model import Checkpoint
from consilience.checkpoints.open import open_checkpoint
from consilience.checkpoints.sources import Source, Stored
from consilience.checkpoints.writer import OutputTensor, Shard, plan_shards
from consilience.core.executor import default_workers
from consilience.core.hashing import fingerprint
from consilience.core.jobs import check_output, partial_folder
from consilience.errors import ConsilienceError, Problems, RecipeError
from consilience.merging.adapter_output import adapter_tensors
from consilience.merging.binding import check_method, unknown_parameters
from consilience.merging.cast import Cast
from consilience.merging.filters import unmatched_filters
from consilience.merging.layout import Origin, lay_out, roles
from consilience.merging.method import Method, find_method
from consilience.merging.output_config import output_config
from consilience.merging.parameters import matches
from consilience.merging.request import MergeRequest
from consilience.merging.resolve import Resolver
from consilience.merging.task import DEFAULT_CHUNK, TensorTask
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
                "reads": [
                    {"file": str(s.path), "offset": s.offset, "bytes": s.nbytes}
                    for source in t.sources
                    for s in source.inputs()
                ],
            }
            for t in self.tasks
        ]


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
    models = _open_models(request, planned, problems)
    parts = [roles(request, part) for part in request.slices] if request.slices else [(request.experts, request.base)]
    for experts, base in parts:
        problems.extend(check_method(method, len(experts), has_base=base is not None))
    problems.extend(unknown_parameters(method, sorted(request.parameters.names())))
    problems.extend(_own_inputs(out, models) if out is not None else ())
    problems.raise_if_any(RecipeError, request.origin)
    notices = list(request.warnings)
    donor = models[request.base or _first_model(request)]
    origins, layers = lay_out(request, models, problems)
    problems.raise_if_any(RecipeError, request.origin)
    notices.extend(unmatched_filters(request.parameters, origins))
    vocabulary = plan_vocabulary(request, models, problems, notices)
    problems.raise_if_any(RecipeError, request.origin)
    builder = _Builder(request, method, models, vocabulary.tensors, problems, notices)
    tasks = tuple(builder.task(origin) for origin in origins)
    builder.finish()
    problems.raise_if_any(RecipeError, request.origin)
    config = output_config(donor, models, tasks, layers, vocabulary.config, notices)
    shards, write_bytes = _shards(request, tasks, donor)
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
        _identity(request, models, tasks, shards, stages),
        stages,
    )


def _first_model(request: MergeRequest) -> str:
    if request.slices is not None:
        return request.slices[0].sources[0].model
    return next(name for name in request.models if name in request.experts)


def _open_models(request: MergeRequest, planned: Mapping[str, Checkpoint], problems: Problems) -> dict[str, Checkpoint]:
    """Open every model; an expert that is an adapter alone is applied to the base."""
    models: dict[str, Checkpoint] = {}
    for name, reference in request.models.items():
        if reference in planned:
            models[name] = planned[reference]
            continue
        near = _near(reference, request.folder)
        if _is_adapter(reference, near) and request.base not in (None, name):
            reference = f"{request.models[str(request.base)]}+{reference}"
            near = _near(reference, request.folder)
        try:
            models[name] = open_checkpoint(reference, relative_to=near)
        except ConsilienceError as error:
            text = str(error)
            known = text.startswith((reference, repr(reference)))
            problems.add(f"model {name!r}: {text}" if known else f"model {name!r} ({reference}): {text}")
    return models


def _own_inputs(out: Path, models: Mapping[str, Checkpoint]) -> list[str]:
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


class _Builder:
    """Turns origins into tasks: shapes, stored types, filters, parameters."""

    def __init__(
        self,
        request: MergeRequest,
        method: Method,
        models: Mapping[str, Checkpoint],
        rows: Mapping[tuple[str, str], Source],
        problems: Problems,
        notices: list[str],
    ) -> None:
        self.request = request
        self.method = method
        self.models = models
        self.rows = rows
        self.problems = problems
        self.notices = notices
        self.resolver = Resolver(request, method, problems)
        self.used = dict.fromkeys((*request.merge, *request.copy), 0)
        self.unmatched: list[str] = []
        self.dtypes: dict[str, set[str]] = {}

    def source(self, model: str, tensor: str) -> Source:
        return self.rows.get((model, tensor)) or self.models[model].tensors[tensor]

    def task(self, origin: Origin) -> TensorTask:
        experts = {e: self.source(e, t) for e, t in origin.experts.items()}
        base = self.source(*origin.base) if origin.base else None
        keep_base = base is not None and self.method.base != "none"
        lead = base if base is not None else next(iter(experts.values()))
        shape = tuple(lead.shape)
        for name, source in experts.items():
            if tuple(source.shape) != shape:
                self.problems.add(
                    f"tensor {origin.name!r}: shape {list(source.shape)} in {name!r}, {list(shape)} in "
                    f"{origin.base[0] if origin.base else next(iter(experts))!r}; merge models of one size"
                )
        is_float = DTYPES[lead.dtype].kind == "float"
        stored = (self.request.out_dtype or self.request.cast or lead.dtype) if is_float else lead.dtype
        self._note_dtypes(experts, base, lead)
        if not is_float or not self._is_merged(origin.name):
            return TensorTask(origin.name, shape, stored, copy=lead)
        order = tuple(sorted(experts))
        if self.request.cast:
            experts = {n: cast(s, self.request.cast) for n, s in experts.items()}
            base = cast(base, self.request.cast) if base is not None else None
        return TensorTask(
            origin.name,
            shape,
            stored,
            self.method.name,
            self.resolver.parameters(origin, order),
            tuple(experts[name] for name in order),
            order,
            base if keep_base else None,
            origin.base[0] if origin.base else "base",
            self.request.seed,
        )

    def _is_merged(self, name: str) -> bool:
        copied = [p for p in self.request.copy if matches(p, name)]
        merged = [p for p in self.request.merge if matches(p, name)]
        for pattern in (*copied, *merged):
            self.used[pattern] += 1
        if copied:
            return False
        if self.request.merge and not merged:
            self.unmatched.append(name)
            return False
        return True

    def _note_dtypes(self, experts: Mapping[str, Source], base: Source | None, lead: Source) -> None:
        found = {s.dtype for s in experts.values()} | ({base.dtype} if base is not None else set())
        if len(found) > 1:
            self.dtypes.setdefault(" and ".join(sorted(found)), set()).add(lead.dtype)

    def finish(self) -> None:
        """Report what only all tensors together show."""
        for pattern, count in self.used.items():
            if not count:
                self.problems.add(f"tensors: the pattern {pattern!r} matches no tensor of the model")
        if self.unmatched:
            shown = ", ".join(self.unmatched[:3]) + (", ..." if len(self.unmatched) > 3 else "")
            self.notices.append(f"{len(self.unmatched)} tensor(s) match no pattern and are copied ({shown})")
        for mixed, stored in self.dtypes.items():
            self.notices.append(
                f"inputs mix {mixed}; the merge is stored as {self.request.out_dtype or ' and '.join(sorted(stored))}"
                " (the type of the base, else of the first expert, unless the recipe says otherwise)"
            )
        self.resolver.finish()


def cast(source: Source, dtype: str) -> Source:
    """Return the source rounded to `dtype` when read, unless that changes nothing."""
    widening = {("BF16", "F32"), ("F16", "F32"), ("BF16", "F64"), ("F16", "F64"), ("F32", "F64")}
    if source.dtype == dtype or (source.dtype, dtype) in widening:
        return source
    return Cast(source, dtype)


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
    """Chunks of every thread, and what computed sources hold (whole factors of adapters)."""
    worst = 0
    for task in tasks:
        width = np.dtype(task.work).itemsize if task.copy is None else 8
        chunk = min(DEFAULT_CHUNK, max(task.numel, 1))
        computed = sum(4 * s.nbytes for source in task.sources for s in source.inputs()[1:])
        worst = max(worst, chunk * width * (len(task.sources) + 4) + min(computed, 1 << 26))
    return workers * worst


def _identity(
    request: MergeRequest,
    models: Mapping[str, Checkpoint],
    tasks: tuple[TensorTask, ...],
    shards: tuple[Shard, ...],
    stages: tuple[Plan, ...],
) -> str:
    return fingerprint(
        {
            "plan": PLAN_VERSION,
            "models": {name: model.fingerprint for name, model in models.items()},
            "tasks": [
                [t.name, t.shape, t.dtype, t.method, dict(t.parameters), t.expert_names, t.seed, str(t.sources)]
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
