"""One run of encoder training, from a base to a published expert with its record."""

from __future__ import annotations

import shutil
from dataclasses import asdict
from importlib.metadata import version
from pathlib import Path
from statistics import fmean
from typing import TYPE_CHECKING, Any

from consilience.core.jobs import Budget, Job
from consilience.core.progress import Progress
from consilience.core.records import read_record, write_record
from consilience.training.run import finished_record, torch_threads, weight_checksums
from consilience.training.settings import Settings

if TYPE_CHECKING:
    from consilience.models.encoder import DenseEncoder
    from consilience.training.artefact import Trainee
    from consilience.training.encoder_task import EncoderTask
    from consilience.training.fitting import TrainingState

__all__ = ["EncoderRun"]

_RECORD = "expert.json"
_VERSION = 1


class EncoderRun:
    """One training run: the request, and the way from base to published expert."""

    def __init__(
        self,
        *,
        base: str,
        task: EncoderTask,
        out: Path,
        settings: Settings,
        licence: str | None,
        device: str | None,
    ) -> None:
        from consilience.models import load_encoder

        self.base, self.task, self.out, self.settings, self.licence = base, task, out, settings, licence
        self.encoder: DenseEncoder = load_encoder(base, device=device, max_tokens=settings.max_tokens)
        self.base_files = weight_checksums(self.encoder.checkpoint)
        self.request = {
            "base": base,
            "base_files": self.base_files,
            **task.request(),
            "licence": licence,
            "settings": {**asdict(settings), **task.settings()},
        }

    def finished(self) -> dict[str, Any] | None:
        """Return the record of a finished run of the same request."""
        return finished_record(self.out, self.request, _RECORD, _VERSION)

    def train(
        self, *, state_every: int, threads: int | None, budget: Budget | None, shown: bool | None
    ) -> dict[str, Any]:
        """Measure the base, train, write checkpoints and the expert, publish."""
        from consilience.training.loop import run_steps

        settings, encoder = self.settings, self.encoder
        loss_at = self.task.loss(encoder, settings)
        with (
            torch_threads(threads),
            Job(self.out, kind="train", request=self.request, budget=budget) as job,
            Progress(settings.steps, "steps", f"training {self.out.name}", enabled=shown) as progress,
        ):
            if "base" not in job.done:
                job.record("base", dev=self.task.measure(encoder, settings))
            trainee = self._trainee()

            def after_step(state: TrainingState) -> None:
                if state.step in settings.checkpoints:
                    self._checkpoint(job, trainee, state)

            state = run_steps(
                loss_at,
                encoder,
                trainee.parameters,
                settings,
                state_file=job.partial / "state.safetensors",
                state_every=state_every,
                after_step=after_step,
                check=job.check,
                progress=progress,
            )
            self._finish(job, trainee, state)
        return read_record(self.out / _RECORD, "expert", _VERSION)

    def _trainee(self) -> Trainee:
        from consilience.training.artefact import FullWeights, LoraAdapter

        settings = self.settings
        if settings.method == "full":
            return FullWeights(self.encoder, dtype=settings.dtype)
        return LoraAdapter(
            self.encoder,
            self.base,
            rank=settings.rank,
            alpha=settings.alpha,
            targets=settings.targets,
            seed=settings.seed,
            dtype=str(settings.dtype),
        )

    def _checkpoint(self, job: Job, trainee: Trainee, state: TrainingState) -> None:
        key = f"step-{state.step}"
        if key in job.done:
            return
        folder = job.work / "checkpoints" / key
        shutil.rmtree(folder, ignore_errors=True)  # left by a run that was killed while writing it
        trainee.write(folder)
        job.record(key, dev=self._as_written(trainee), loss=round(fmean(state.losses[-20:]), 4))

    def _as_written(self, trainee: Trainee) -> Any:
        from consilience.training.artefact import rounded

        with rounded(trainee):
            return self.task.measure(self.encoder, self.settings)

    def _finish(self, job: Job, trainee: Trainee, state: TrainingState) -> None:
        import torch

        trainee.write(job.work)
        curve = {key: entry["dev"] for key, entry in job.done.items() if key.startswith("step-")}
        record = {
            "base": self.base,
            "base_files": self.base_files,
            **trainee.facts(),
            "data": self.task.data_facts(self.licence),
            "settings": {**asdict(self.settings), **self.task.settings()},
            "loss": {
                "kind": self.task.kind,
                "first_5": round(fmean(state.losses[:5]), 4),
                "last_20": round(fmean(state.losses[-20:]), 4),
                "every_step": [round(loss, 4) for loss in state.losses],
            },
            "dev": {
                **self.task.dev_facts(self.settings),
                "base": job.done["base"]["dev"],
                "expert": self._as_written(trainee),
                "checkpoints": curve,
            },
            "seconds": round(state.seconds, 1),
            "threads": torch.get_num_threads(),
            "tokens": state.tokens,
            "versions": {name: version(name) for name in ("consilience", "torch", "transformers", "peft")},
        }
        write_record(job.work / _RECORD, "expert", _VERSION, record)
        job.publish()
