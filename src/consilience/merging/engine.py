"""Runs a plan: tensors in parallel, every finished one in the journal, the result verified, then published at once."""

from __future__ import annotations

import json
import threading
import time
import warnings
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from numpy.typing import NDArray

from consilience import __version__
from consilience.checkpoints.dtypes import DTYPES
from consilience.checkpoints.side_files import copy_side_files
from consilience.checkpoints.writer import CheckpointWriter
from consilience.core.atomic import write_bytes_atomic
from consilience.core.executor import run_tasks
from consilience.core.hashing import file_xxh3, fingerprint
from consilience.core.jobs import MANIFEST, Budget, Job, clear_published
from consilience.core.progress import Progress
from consilience.core.records import read_record, write_record
from consilience.errors import WorkError
from consilience.merging.adapter_output import (
    adapter_config,
    checksum,
    factor_tensor,
    factored_names,
    total_error,
)
from consilience.merging.allocator import return_large_blocks
from consilience.merging.card import model_card
from consilience.merging.device import check_device, torch_threads
from consilience.merging.global_scope import model_statistics
from consilience.merging.plan import Plan
from consilience.merging.task import DEFAULT_CHUNK, TensorTask, makes_whole, merge_tensor

__all__ = ["MergeResult", "run_plan"]

MANIFEST_VERSION = 1


@dataclass(frozen=True)
class MergeResult:
    """What a merge wrote. `error` is the relative truncation error of an adapter, None for a whole model."""

    out: Path
    manifest: Mapping[str, Any]
    seconds: float
    cpu_seconds: float
    resumed: bool
    notices: tuple[str, ...] = field(default=())
    error: float | None = None


def run_plan(
    plan: Plan,
    *,
    budget: Budget | None = None,
    progress: bool | None = None,
    chunk: int = DEFAULT_CHUNK,
    device: str = "cpu",
) -> MergeResult:
    """Execute a plan that has an output folder; running the same plan again resumes it, or returns what is there.

    `device` is where methods that see whole matrices compute ("cpu", "cuda", "cuda:1"); others never leave the CPU.

    Raises NonFiniteError, StorageError, VerificationError, BudgetError, CancelledError; nothing is published then.
    """
    assert plan.out is not None, "plan with out=..."
    started, cpu_started = time.monotonic(), time.process_time()
    if any(makes_whole(task) for task in plan.tasks):
        check_device(device)
        return_large_blocks()
    if finished := _already_there(plan):
        clear_published(plan.out)
        return MergeResult(plan.out, finished, 0.0, 0.0, True, plan.notices, finished.get("truncation_error"))
    with Job(plan.out, kind="merge", request={"plan": plan.identity}, budget=budget) as job:
        for stage in plan.stages:
            run_plan(stage, budget=budget, progress=progress, chunk=chunk, device=device)
        run = _Run(plan, job, chunk, device)
        total = plan.read_bytes + plan.write_bytes
        with Progress(total, "B", f"merging ({plan.request.method})", enabled=progress) as bar, _noted() as noted:
            run.merge(bar)
        run.plan = replace(plan, notices=(*plan.notices, *noted))
        manifest = run.finish(time.monotonic() - started, time.process_time() - cpu_started)
        job.publish()
        resumed = job.resumed
    return MergeResult(
        plan.out,
        manifest,
        time.monotonic() - started,
        time.process_time() - cpu_started,
        resumed,
        run.plan.notices,
        manifest.get("truncation_error"),
    )


@contextmanager
def _noted() -> Iterator[list[str]]:
    """Collect what methods warn of while they work, from all threads, once each and in a fixed order."""
    noted: list[str] = []
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always", UserWarning)
        yield noted
    noted.extend(sorted({str(w.message) for w in caught if w.category is UserWarning}))


def _already_there(plan: Plan) -> dict[str, Any] | None:
    """Return the manifest of a finished output of this very plan."""
    assert plan.out is not None
    path = plan.out / MANIFEST
    if not path.is_file():
        return None
    manifest = read_record(path, "manifest", MANIFEST_VERSION)
    if manifest.get("identity") != plan.identity:
        return None
    intact = all(
        (plan.out / f["file"]).is_file() and (plan.out / f["file"]).stat().st_size == f["bytes"]
        for f in manifest["files"]
    )
    return manifest if intact else None


def _cost(task: TensorTask) -> int:
    """Bytes that making a tensor reads and writes; passes over the whole model are counted where they happen."""
    steps = task.steps() if task.copy is None else None
    surveys = len(steps.surveys) if steps is not None and steps.scope == "tensor" else 0
    return (1 + surveys) * task.pass_bytes + task.nbytes


class _Run:
    """One execution: what the threads share."""

    def __init__(self, plan: Plan, job: Job, chunk: int, device: str) -> None:
        self.plan = plan
        self.job = job
        self.chunk = chunk
        self.device = device
        self.writer = CheckpointWriter(job.work, plan.shards)
        self.planned = self.writer.planned()
        self.checksums: dict[str, str] = {}
        self.inputs: dict[str, dict[str, str]] = {name: {} for name in plan.models}
        self.factors: dict[str, dict[str, float]] = {}
        self.facts: dict[str, Mapping[str, Any]] = {}
        self._lock = threading.Lock()

    def merge(self, bar: Progress) -> None:
        """Make every tensor that the journal does not hold."""
        self.writer.create()
        self._resume()
        pending = [t for t in self.plan.tasks if t.name not in self.job.done and self._wanted(t)]
        kept = [t for t in self.plan.tasks if t.name in self.job.done]
        bar.skip(sum(_cost(t) for t in kept))
        statistics = model_statistics(
            [t for t in self.plan.tasks if self._wanted(t)] if pending else [],
            workers=self.plan.workers,
            chunk=self.chunk,
            check=self.job.check,
            advance=bar.advance,
            device=self.device,
        )
        pending.sort(key=lambda t: (-t.numel, t.name))  # large ones first, so that no thread ends with one

        def one(task: TensorTask) -> None:
            self.job.check()
            if self.plan.request.adapter is not None:
                self._factor(task, statistics.get(task.name))
            else:
                self._merge(task, statistics.get(task.name))
            bar.advance(_cost(task))

        at_once = [makes_whole(t) for t in pending]
        for _ in run_tasks(one, [t for t, w in zip(pending, at_once, strict=True) if not w], workers=self.plan.workers):
            pass
        matrices = [t for t, w in zip(pending, at_once, strict=True) if w]
        if matrices:
            with torch_threads(self.plan.workers):
                for task in matrices:  # one at a time: each fills memory and processors by itself
                    one(task)

    def _wanted(self, task: TensorTask) -> bool:
        if self.plan.request.adapter is None:
            return True
        return factored_names(task)[0] in self.planned

    def _resume(self) -> None:
        """Trust a journal line only when the bytes on disk have its checksum; redo the tensor otherwise."""
        for key, entry in list(self.job.done.items()):
            written = entry["checksums"]
            if all(self.writer.checksum(name) == value for name, value in written.items()):
                self._keep(entry)
            else:
                del self.job.done[key]

    def _keep(self, entry: Mapping[str, Any]) -> None:
        with self._lock:
            self.checksums.update(entry["checksums"])
            for model, tensors in entry.get("inputs", {}).items():
                self.inputs.setdefault(model, {}).update(tensors)
            if "factor" in entry:
                self.factors[entry["key"]] = entry["factor"]
            if "facts" in entry:
                self.facts[entry["key"]] = entry["facts"]

    def _record(self, task: TensorTask, checksums: Mapping[str, str], **facts: Any) -> None:
        self.job.record(task.name, durable=False, checksums=checksums, **facts)
        self._keep(self.job.done[task.name])

    def _write(self, name: str, itemsize: int) -> Callable[[int, NDArray[Any]], None]:
        def write(start: int, raw: NDArray[Any]) -> None:
            self.writer.write(name, start * itemsize, raw)

        return write

    def _merge(self, task: TensorTask, statistics: dict[str, Any] | None) -> None:
        write = self._write(task.name, DTYPES[task.dtype].itemsize)
        told: dict[str, Any] = {}
        digest, read = merge_tensor(
            task,
            write,
            statistics=statistics,
            chunk=self.chunk,
            check=self.job.check,
            device=self.device,
            facts=told,
        )
        names = (*task.expert_names, task.base_name) if task.copy is None else ("copied",)
        inputs = {n: {task.name: h} for n, h in zip(names, read, strict=False) if h}
        self._record(task, {task.name: digest}, inputs=inputs, **({"facts": told} if told else {}))

    def _factor(self, task: TensorTask, statistics: dict[str, Any] | None) -> None:
        output = self.plan.request.adapter
        assert output is not None
        names = factored_names(task)
        dtype = self.planned[names[0]].dtype
        made = factor_tensor(task, output, dtype, statistics, self.chunk)
        checksums = {}
        for name, raw in zip(names, (made.a, made.b), strict=True):
            self.writer.write(name, 0, raw)
            checksums[name] = checksum(raw)
        self._record(task, checksums, factor={"norm": made.norm, "error": made.error})

    def finish(self, seconds: float, cpu_seconds: float) -> dict[str, Any]:
        """Write side files, index, manifest and card; re-open and verify everything."""
        plan, work = self.plan, self.job.work
        overrides: dict[str, bytes] = dict(plan.side_files)
        truncation = None
        if plan.request.adapter is not None:
            overrides = {"adapter_config.json": adapter_config(plan.request.adapter, plan.tasks, plan.donor.reference)}
            truncation = total_error(list(self.factors.values()))
        elif plan.config:
            overrides["config.json"] = (json.dumps(plan.config, indent=2, ensure_ascii=False) + "\n").encode()
        carried = [] if plan.request.adapter else copy_side_files(plan.donor, work, overrides)
        if plan.request.adapter:
            for name, data in overrides.items():
                write_bytes_atomic(work / name, data)
        self.writer.finish()
        self.writer.verify(self.checksums)
        if len(self.checksums) != len(self.planned):
            raise WorkError(f"{plan.out}: {len(self.checksums)} tensors were made, more were planned; run again")
        manifest = self._manifest(truncation, carried, seconds, cpu_seconds)
        if plan.request.text:
            write_bytes_atomic(work / "recipe.yml", plan.request.text.encode())
        write_bytes_atomic(work / "README.md", model_card(plan, manifest).encode())
        write_record(work / MANIFEST, "manifest", MANIFEST_VERSION, manifest)
        return manifest

    def _content(self, name: str) -> str:
        """Return one hash of all the bytes that were read of a model: its tensors and the files of its adapters."""
        adapters = [[file_xxh3(f.path) for f in a.files] for a in self.plan.models[name].adapters]
        return fingerprint({"tensors": self.inputs[name], "adapters": adapters})

    def _tolerance(self) -> str:
        """Say how closely the same recipe gives the same numbers elsewhere."""
        matrices = [task.steps().tolerance for task in self.plan.tasks if makes_whole(task)]
        if matrices:
            share = f"{max(matrices):g} of the largest change of a tensor"
            return f"{share} (matrix computations in PyTorch on {self.device})"
        return "exact bytes" if self.plan.request.adapter is None else "1e-5 relative (singular values)"

    def _manifest(
        self, truncation: float | None, carried: list[str], seconds: float, cpu_seconds: float
    ) -> dict[str, Any]:
        plan = self.plan
        content = {name: self._content(name) for name in plan.models}
        manifest: dict[str, Any] = {
            "consilience": __version__,
            "kind": "merge",
            "identity": plan.identity,
            "method": plan.request.method,
            "seed": plan.request.seed,
            "recipe": plan.request.text,
            "tolerance": self._tolerance(),
            "models": {
                name: {
                    "reference": model.reference,
                    "fingerprint": model.fingerprint,
                    "content": content[name],
                    "files": [{"file": Path(f.path).name, "bytes": f.size} for f in model.files],
                }
                for name, model in plan.models.items()
            },
            "files": [{"file": shard.file, "bytes": shard.size} for shard in plan.shards],
            "side_files": carried,
            "parameters": sum(t.numel for t in plan.tasks),
            "checksum": fingerprint(self.checksums),
            "checksums": dict(sorted(self.checksums.items())),
            "notices": list(plan.notices),
            "seconds": round(seconds, 3),
            "cpu_seconds": round(cpu_seconds, 3),
        }
        if self.facts:
            manifest["tensors"] = {name: dict(told) for name, told in sorted(self.facts.items())}
        if truncation is not None:
            manifest["truncation_error"] = truncation
            manifest["factors"] = self.factors
        return manifest
