"""One run of gathering statistics: a Job whose units are tensors, so that a killed run goes on where it was."""

from __future__ import annotations

import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from consilience.checkpoints.header import read_header
from consilience.checkpoints.writer import CheckpointWriter, OutputTensor, plan_shards
from consilience.core.atomic import write_text_atomic
from consilience.core.hashing import fingerprint
from consilience.core.jobs import MANIFEST, Budget, Job, clear_published
from consilience.core.progress import Progress
from consilience.core.records import read_record, write_record
from consilience.errors import OutputError, RequestError, WorkError
from consilience.tuning.recipes import recipes_of

if TYPE_CHECKING:
    from torch import Tensor

    from consilience.models.model import Predictor
    from consilience.tuning.sequential import SequentialGrams
    from consilience.tuning.statistic import Statistic

__all__ = ["Gathering"]

_ONE_FILE = 1 << 62


class Gathering:
    """One run: what is gathered, and where it stands."""

    def __init__(
        self,
        models: Mapping[str, Predictor],
        examples: Mapping[str, Sequence[Any]],
        out: Path,
        *,
        kinds: tuple[str, ...],
        batch: int,
        draws: int | None,
        merge: Mapping[str, Any],
        seed: int,
        references: Mapping[str, str],
        base: str | None,
    ) -> None:
        from consilience.tuning.identity import examples_hash, weights_hash

        self.models, self.out, self.kinds, self.batch = models, out, kinds, batch
        self.draws, self.merge, self.seed = draws, merge, seed
        self.references, self.base = references, base
        self.examples = examples
        self.request = {
            "models": {name: {"name": model.name, "weights": weights_hash(model)} for name, model in models.items()},
            "examples": {name: [len(held), examples_hash(held)] for name, held in self.examples.items()},
            "kinds": kinds,
            "batch": batch,
            "draws": draws,
            "seed": seed,
            "merge": merge if "sequential_gram" in kinds else None,
            "references": references,
            "base": base,
        }
        self.files: dict[str, dict[str, Any]] = {}
        self.facts: dict[str, Any] = {}

    def _in_batch(self, name: str) -> bool:
        return bool(getattr(self.models[name], "in_batch", False))

    def _whole_batches(self, name: str) -> Sequence[Any]:
        """Return the examples without the rest of a batch, which would have other outcomes than the batches before."""
        held = self.examples[name]
        return held[: len(held) - len(held) % self.batch] if self._in_batch(name) else held

    def finished(self) -> dict[str, Any] | None:
        """Return the record of a finished run of the same request."""
        path = self.out / MANIFEST
        if not path.is_file():
            return None
        record = read_record(path, "manifest", 1)
        if fingerprint(record.get("request")) == fingerprint(self.request):
            clear_published(self.out)
            return record
        raise OutputError(
            f"output {self.out}: holds the result of another request ({record.get('kind')}); choose another place, or "
            "delete it"
        )

    def gather(self, memory: int, state_every: float, budget: Budget | None, shown: bool | None) -> dict[str, Any]:
        """Gather everything that the journal does not hold, and publish it."""
        started = time.monotonic()
        with Job(self.out, kind="statistics", request=self.request, budget=budget) as job:
            work = list(self._statistics())
            across = self._sequential() if "sequential_gram" in self.kinds else None
            total = sum(-(-len(examples) // size) for _, _, examples, size in work)
            total += across.passes() if across else 0
            with Progress(total, "batches", f"statistics {self.out.name}", enabled=shown) as bar:
                for name, statistic, examples, size in work:
                    self._one(job, bar, name, statistic, examples, size, memory, state_every)
                if "logit_distance" in self.kinds:
                    self._distances(job)
                if across is not None:
                    self._layers(job, bar, across)
            recipes = recipes_of(self.kinds, self.references, self.base, self.merge, self.facts.get("distance"))
            for file, text in recipes.items():
                write_text_atomic(job.work / file, text)
            record = {
                "kind": "statistics",
                "request": self.request,
                "files": self.files,
                **self.facts,
                "recipes": sorted(recipes),
                "seconds": round(time.monotonic() - started, 1),
            }
            write_record(job.work / MANIFEST, "manifest", 1, record)
            job.publish()
        return read_record(self.out / MANIFEST, "manifest", 1)

    def _statistics(self) -> Iterator[tuple[str, Statistic, Sequence[Any], int]]:
        """Yield what is gathered of single models: whose, what, on which examples, and the size of a batch."""
        from consilience.tuning.activation import Activation
        from consilience.tuning.fisher import Fisher
        from consilience.tuning.gram import Gram
        from consilience.tuning.sensitivity import Sensitivity

        known: tuple[Statistic, ...] = (Fisher(self.draws, self.seed), Gram(), Activation(), Sensitivity())
        for name in self.models:
            for statistic in known:
                if statistic.kind in self.kinds:
                    examples = self._whole_batches(name) if statistic.single else self.examples[name]
                    one_by_one = statistic.single and not self._in_batch(name)
                    yield name, statistic, examples, 1 if one_by_one else self.batch

    def _writer(self, job: Job, name: str, kind: str, shapes: Mapping[str, tuple[int, ...]]) -> CheckpointWriter:
        outputs = [OutputTensor(tensor, "F32", shape) for tensor, shape in shapes.items()]
        facts = {"kind": kind, "model": self.models[name].name}
        shards = plan_shards(
            outputs,
            file_names=f"{kind}.safetensors",
            max_shard_bytes=_ONE_FILE,
            metadata=facts,
            components=False,
        )
        writer = CheckpointWriter(job.work / name if name else job.work, shards)
        writer.create()
        return writer

    def _kept(self, job: Job, writer: CheckpointWriter, unit: str, names: Iterable[str]) -> set[str]:
        """Return the tensors whose journal line agrees with what lies on disk."""
        done = {tensor: job.done.get(f"{unit}/{tensor}") for tensor in names}
        return {tensor for tensor, entry in done.items() if entry and writer.checksum(tensor) == entry["checksum"]}

    def _write(self, job: Job, writer: CheckpointWriter, unit: str, means: Iterable[tuple[str, Tensor]]) -> None:
        written = []
        for tensor, mean in means:
            writer.write(tensor, 0, np.ascontiguousarray(mean.numpy()))
            written.append(tensor)
        writer.sync()
        for tensor in written:
            job.record(f"{unit}/{tensor}", durable=tensor == written[-1], checksum=writer.checksum(tensor))

    def _one(
        self,
        job: Job,
        bar: Progress,
        name: str,
        statistic: Statistic,
        examples: Sequence[Any],
        size: int,
        memory: int,
        state_every: float,
    ) -> None:
        """Gather one statistic of one model, in as many passes over the data as its sums need."""
        from consilience.tuning.inputs import evaluating
        from consilience.tuning.sums import Sums, divide_passes

        model = self.models[name]
        unit = f"{name}/{statistic.kind}" if name else statistic.kind
        with evaluating(model):
            shapes = statistic.shapes(model, next(iter(model.batches(examples, size))))
            if not shapes:
                raise RequestError(
                    f"{unit}: {model.name} has no torch.nn.Linear layer that the data reach (GPT-2's Conv1D keeps its "
                    "weights transposed and has none); use a statistic of whole tensors, such as fisher"
                )
            writer = self._writer(job, name, statistic.kind, shapes)
            kept = self._kept(job, writer, unit, shapes)
            passes = divide_passes({t: shape for t, shape in shapes.items() if t not in kept}, memory)
            batches = -(-len(examples) // size)
            bar.total += batches * (len(passes) - 1)
            for tensors in passes:
                sums = Sums({t: shapes[t] for t in tensors}, next(model.module.parameters()).device)
                self._pass(job, bar, statistic, model, examples, size, sums, unit, state_every)
                self._write(job, writer, unit, sums.means())
        self._finish(writer, unit, len(shapes), len(examples))
        if statistic.kind == "fisher":
            self.files[f"{unit}.safetensors"]["draws"] = self.draws or "every outcome (texts: 1)"

    def _finish(self, writer: CheckpointWriter, unit: str, tensors: int, examples: int) -> None:
        writer.finish()
        writer.verify()
        self.files[f"{unit}.safetensors"] = {"tensors": tensors, "examples": examples}

    def _pass(
        self,
        job: Job,
        bar: Progress,
        statistic: Statistic,
        model: Predictor,
        examples: Sequence[Any],
        size: int,
        sums: Any,
        unit: str,
        state_every: float,
    ) -> None:
        """Go once over the data, saving the sums from time to time and before stopping."""
        state = job.partial / "sums.safetensors"
        sums.load(state, unit)
        bar.skip(sums.batches)
        saved = time.monotonic()
        for batch in model.batches(examples[sums.batches * size :], size):
            statistic.add(model, batch, sums.batches * size, sums)
            sums.batches += 1
            bar.advance(1)
            try:
                job.check()
            except WorkError:
                sums.save(state, unit)
                raise
            if time.monotonic() - saved >= state_every:
                sums.save(state, unit)
                saved = time.monotonic()

    def _distances(self, job: Job) -> None:
        from consilience.tuning.distance import logit_distances

        found: dict[str, dict[str, float]] = {}
        for task in self.models:
            key = f"logit_distance/{task}"
            if key not in job.done:
                measured = logit_distances(self.models, task, self._whole_batches(task), batch=self.batch)
                job.record(key, distances=measured)
            job.check()
            found[task] = job.done[key]["distances"]
        sums = {name: sum(found[task].get(name, 0.0) for task in self.models) for name in self.models}
        self.facts |= {"logit_distance": found, "distance": sums}

    def _sequential(self) -> SequentialGrams:
        from consilience.tuning.sequential import SequentialGrams

        merge = dict(self.merge)
        ratio = merge.pop("reduce_non_diagonal_ratio")
        return SequentialGrams(self.models, self.examples, ratio=ratio, batch=self.batch, **merge)

    def _layers(self, job: Job, bar: Progress, grams: SequentialGrams) -> None:
        """Gather the Grams layer by layer, merging each from what lies on disk."""
        import torch

        shapes, kind = grams.shapes(), grams.kind
        writers = {name: self._writer(job, name, kind, shapes) for name in self.models}
        ridges: dict[str, float] = {}

        def step() -> None:
            bar.advance(1)
            job.check()

        def gram(name: str, tensor: str) -> Tensor:
            stored = read_header(writers[name].folder / f"{kind}.safetensors").tensors[tensor]
            values = np.empty(stored.numel, np.float32)
            stored.read(0, stored.numel, values)
            return torch.from_numpy(values).reshape(stored.shape)

        for layer in grams.layers:
            for name, writer in writers.items():
                unit = f"{name}/{kind}"
                if layer.linear and self._kept(job, writer, unit, layer.linear) != set(layer.linear):
                    self._write(job, writer, unit, grams.gather(layer, name, step))
                elif layer.linear:
                    bar.skip(-(-len(self.examples[name]) // self.batch))
            ridges |= grams.merge(layer, gram)
        for name, writer in writers.items():
            self._finish(writer, f"{name}/{kind}", len(shapes), len(self.examples[name]))
        self.facts["layers"] = [layer.name for layer in grams.layers]
        if ridges:
            self.facts["ridge"] = ridges
