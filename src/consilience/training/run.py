"""A training run from base to published expert; what differs by kind of model is in its subclasses."""

from __future__ import annotations

import shutil
from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from importlib.metadata import version
from pathlib import Path
from statistics import fmean
from typing import TYPE_CHECKING, Any, ClassVar

from consilience.core.hashing import file_xxh3, fingerprint
from consilience.core.jobs import MANIFEST, Budget, Job
from consilience.core.progress import Progress
from consilience.core.records import read_record, write_record
from consilience.errors import RequestError

if TYPE_CHECKING:
    from consilience.checkpoints import Checkpoint
    from consilience.training.artefact import Trainee
    from consilience.training.fitting import TrainingState
    from consilience.training.settings import CommonSettings

__all__ = ["TrainingRun", "finished_record", "torch_threads", "weight_checksums"]

_RECORD = "expert.json"
_VERSION = 1


class TrainingRun(ABC):
    """The way from a base to an expert: the base measured on dev, steps, checkpoints, the expert with its record.

    A subclass says what identifies the run, makes what is trained, measures, descends, and describes itself in the
    record. A run that was killed goes on from its last saved state; finished checkpoints are not written again.
    """

    window: ClassVar[int] = 20
    """Steps whose mean is the loss of a checkpoint: single batches are noisy."""

    def __init__(self, base: str, out: Path, settings: CommonSettings, base_files: Mapping[str, str]) -> None:
        self.base, self.out, self.settings, self.base_files = base, out, settings, dict(base_files)

    @abstractmethod
    def request(self) -> dict[str, Any]:
        """Return what identifies the run, as plain data."""

    @abstractmethod
    def trainee(self) -> Trainee:
        """Return what is trained and written."""

    @abstractmethod
    def measure(self) -> Any:
        """Return the scores on dev with the weights as they are, None where there is nothing to measure on."""

    @abstractmethod
    def descend(self, trainee: Trainee, **how: Any) -> TrainingState:
        """Take all steps; `how` are the keywords of `fitting.fit`."""

    @abstractmethod
    def described(self, dev: Mapping[str, Any], state: TrainingState) -> dict[str, Any]:
        """Return the record's own part: data, settings, loss, dev.

        dev: "base" and "expert" as measured, "checkpoints" by key with step, loss and dev.
        """

    def prepare(self) -> None:  # noqa: B027  (most need nothing)
        """Make what is needed before anything is written; what is wrong with the data comes out here."""

    def write(self, trainee: Trainee, folder: Path, state: TrainingState) -> None:
        """Write the trained weights, and what belongs beside them."""
        trainee.write(folder)

    def finished(self) -> dict[str, Any] | None:
        """Return the record of a finished run of the same request, None where there is none."""
        return finished_record(self.out, self.request(), _RECORD, _VERSION)

    def adapter_options(self) -> dict[str, Any]:
        """Return the settings of a LoRA adapter."""
        settings = self.settings
        shape = {"rank": settings.rank, "alpha": settings.alpha, "targets": settings.targets}
        return {**shape, "seed": settings.seed, "dtype": str(settings.dtype)}

    def recent(self, state: TrainingState) -> float:
        """Return the mean loss of the last steps."""
        return round(fmean(state.losses[-self.window :]), 5)

    def train(
        self, *, state_every: int, threads: int | None, budget: Budget | None, shown: bool | None
    ) -> dict[str, Any]:
        """Run, publish, and return the record."""
        settings = self.settings
        with torch_threads(threads):
            self.prepare()
        with (
            torch_threads(threads),
            Job(self.out, kind="train", request=self.request(), budget=budget) as job,
            Progress(settings.steps, "steps", f"training {self.out.name}", enabled=shown) as progress,
        ):
            if "base" not in job.done:
                job.record("base", dev=self.measure())
            trainee = self.trainee()

            def after_step(state: TrainingState) -> None:
                if state.step in settings.checkpoints:
                    self._checkpoint(job, trainee, state)

            state = self.descend(
                trainee,
                state_file=job.partial / "state.safetensors",
                state_every=state_every,
                after_step=after_step,
                check=job.check,
                progress=progress,
            )
            self._finish(job, trainee, state)
        return read_record(self.out / _RECORD, "expert", _VERSION)

    def _as_written(self, trainee: Trainee) -> Any:
        from consilience.training.artefact import rounded

        with rounded(trainee):
            return self.measure()

    def _checkpoint(self, job: Job, trainee: Trainee, state: TrainingState) -> None:
        key = f"step-{state.step}"
        if key in job.done:
            return
        folder = job.work / "checkpoints" / key
        shutil.rmtree(folder, ignore_errors=True)  # left by a run that was killed while writing it
        self.write(trainee, folder, state)
        job.record(key, step=state.step, loss=self.recent(state), dev=self._as_written(trainee))

    def _finish(self, job: Job, trainee: Trainee, state: TrainingState) -> None:
        import torch

        self.write(trainee, job.work, state)
        saved = sorted((one for key, one in job.done.items() if key.startswith("step-")), key=lambda one: one["step"])
        dev = {
            "base": job.done["base"]["dev"],
            "expert": self._as_written(trainee),
            "checkpoints": {one["key"]: {name: one[name] for name in ("step", "loss", "dev")} for one in saved},
        }
        record: Mapping[str, Any] = {
            "base": self.base,
            "base_files": self.base_files,
            **trainee.facts(),
            **self.described(dev, state),
            "seconds": round(state.seconds, 1),
            "threads": torch.get_num_threads(),
            "tokens": state.tokens,
            "versions": {name: version(name) for name in ("consilience", "torch", "transformers", "peft")},
        }
        write_record(job.work / _RECORD, "expert", _VERSION, record)
        job.publish()


def weight_checksums(checkpoint: Checkpoint) -> dict[str, str]:
    """Return the checksum of every file of weights, by its path in the model's or adapter's folder."""
    opened = [(checkpoint.folder, checkpoint.files), *((one.folder, one.files) for one in checkpoint.adapters)]
    return {
        file.path.relative_to(folder).as_posix(): file_xxh3(file.path) for folder, files in opened for file in files
    }


def finished_record(out: Path, request: Mapping[str, Any], name: str, version: int) -> dict[str, Any] | None:
    """Return the record of a finished run of the same request in `out`; None where there is none."""
    if not (out / MANIFEST).is_file() or not (out / name).is_file():
        return None
    done = read_record(out / MANIFEST, "manifest", 1).get("request")
    return read_record(out / name, "expert", version) if fingerprint(done) == fingerprint(request) else None


@contextmanager
def torch_threads(count: int | None) -> Iterator[None]:
    """Let torch use `count` threads on a CPU for as long as the context lasts; None leaves it as it is."""
    import torch

    if count is not None and count < 1:
        raise RequestError(f"threads is {count}; it has to be at least 1")
    before = torch.get_num_threads()
    torch.set_num_threads(count or before)
    try:
        yield
    finally:
        torch.set_num_threads(before)
