"""One run of encoder training, from a base to a published expert with its record."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from statistics import fmean
from typing import TYPE_CHECKING, Any

from consilience.training.run import TrainingRun, weight_checksums
from consilience.training.settings import Settings

if TYPE_CHECKING:
    from consilience.models.encoder import DenseEncoder
    from consilience.training.artefact import Trainee
    from consilience.training.encoder_task import EncoderTask
    from consilience.training.fitting import TrainingState

__all__ = ["EncoderRun"]


class EncoderRun(TrainingRun):
    """Training of a dense encoder on what its task gives."""

    settings: Settings

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

        self.encoder: DenseEncoder = load_encoder(base, device=device, max_tokens=settings.max_tokens)
        super().__init__(base, out, settings, weight_checksums(self.encoder.checkpoint))
        self.task, self.licence = task, licence

    def request(self) -> dict[str, Any]:
        """Return what identifies the run, as plain data."""
        return {
            "base": self.base,
            "base_files": self.base_files,
            **self.task.request(),
            "licence": self.licence,
            "settings": {**asdict(self.settings), **self.task.settings()},
        }

    def prepare(self) -> None:
        """Draw the batches."""
        self._loss_at = self.task.loss(self.encoder, self.settings)

    def trainee(self) -> Trainee:
        """Return the encoder's weights, or an adapter of them."""
        from consilience.training.artefact import FullWeights, LoraAdapter

        if self.settings.method == "full":
            return FullWeights(self.encoder, dtype=self.settings.dtype)
        return LoraAdapter(self.encoder, self.base, **self.adapter_options())

    def measure(self) -> Any:
        """Return the task's scores on dev."""
        return self.task.measure(self.encoder, self.settings)

    def descend(self, trainee: Trainee, **how: Any) -> TrainingState:
        """Take all steps on the task's loss."""
        from consilience.training.loop import run_steps

        return run_steps(self._loss_at, self.encoder, trainee.parameters, self.settings, **how)

    def described(self, dev: Mapping[str, Any], state: TrainingState) -> dict[str, Any]:
        """Return the record's own part."""
        return {
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
                "base": dev["base"],
                "expert": dev["expert"],
                "checkpoints": {key: entry["dev"] for key, entry in dev["checkpoints"].items()},
            },
        }
