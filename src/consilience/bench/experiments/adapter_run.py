"""One adapter run of a small language model: its checkpoints, their merges, and what each loses."""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from consilience.bench.experiments.scores import Scores
from consilience.merging import Recipe

if TYPE_CHECKING:
    from consilience.bench.experiments.family import Split
    from consilience.bench.experiments.workbench import Workbench
    from consilience.data import LanguageData

__all__ = ["AdapterRun"]


class AdapterRun:
    """A LoRA run on the base of a workbench, trained once and kept beside its states.

    The family has to keep its architecture in `models`, as `Passages` does. data: what is trained on, and the dev and
    test texts that are measured. checkpoints: how many are saved, evenly over the steps; one epoch is run. settings: of
    `train_language_model`. `record` is the run's, `folders` names each checkpoint's folder.
    """

    def __init__(self, bench: Workbench, data: LanguageData, *, checkpoints: int, batch: int, **settings: Any) -> None:
        from consilience.training import train_language_model

        family: Any = bench.family
        place = bench.folder / f"seed-{bench.seed}"
        self.data, self.base = data, place / "base-model"
        if not self.base.is_dir():
            family.models.model(bench.base).save(self.base)
        steps = len(data.examples("train")) // batch
        saved = [steps * (number + 1) // checkpoints for number in range(checkpoints)]
        out = place / f"adapter-{data.name}-{steps}"
        self.record = train_language_model(
            self.base, data, out, steps=steps, batch=batch, checkpoints=saved, seed=bench.seed, **settings
        )
        self.folders = {f"step-{entry['step']}": out / entry["folder"] for entry in self.record["checkpoints"]}

    def scores(self, adapter: str | Path, *, split: Split = "test") -> Scores:
        """Return minus the mean loss per token of each text of a split, of the base with an adapter."""
        from consilience.models import load_causal

        sums, counts = load_causal(f"{self.base}+{adapter}", device="cpu").losses(self.data.examples(split))
        return Scores({self.data.name: -sums / np.maximum(counts, 1)})

    def merge_scores(self, method: str, *, split: Split = "test", **parameters: Any) -> Scores:
        """Merge all checkpoints to one adapter by a recipe, which reads what training recorded, and measure that."""
        with tempfile.TemporaryDirectory() as folder:
            experts = {name: str(path) for name, path in self.folders.items()}
            Recipe(method=method, experts=experts, parameters=parameters).run(Path(folder) / "merged")
            return self.scores(Path(folder) / "merged", split=split)
