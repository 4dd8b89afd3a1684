"""Make a language expert: next-token training of a causal language model, with checkpoints and a record."""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from importlib.metadata import version
from pathlib import Path
from statistics import fmean
from typing import TYPE_CHECKING, Any

from consilience.core.atomic import write_text_atomic
from consilience.core.jobs import Budget, Job
from consilience.core.progress import Progress
from consilience.core.records import read_record, write_record
from consilience.data.language import LanguageData
from consilience.errors import RequestError
from consilience.training.run import finished_record, torch_threads, weight_checksums
from consilience.training.settings import LEARNING_RATES, LanguageSettings

if TYPE_CHECKING:
    from consilience.models.causal import CausalModel
    from consilience.training.artefact import Trainee
    from consilience.training.fitting import TrainingState

__all__ = ["train_language_model"]

_RECORD = "expert.json"
_VERSION = 1
_WINDOW = 10


def train_language_model(
    base: str | Path,
    data: str | Path | LanguageData,
    out: str | Path,
    *,
    method: str = "lora",
    rank: int = 8,
    alpha: float = 16.0,
    targets: Sequence[str] | None = None,
    steps: int | None = None,
    batch: int = 32,
    learning_rate: float | None = None,
    schedule: str = "linear",
    warmup: float = 0.1,
    weight_decay: float = 0.01,
    clip: float = 1.0,
    dropout: bool = False,
    max_tokens: int | None = None,
    seed: int = 0,
    dtype: str | None = None,
    checkpoints: Sequence[int] = (),
    dev_examples: int = 200,
    against: Sequence[str | Path | LanguageData] = (),
    licence: str | None = None,
    state_every: int = 50,
    device: str | None = None,
    threads: int | None = None,
    budget: Budget | None = None,
    progress: bool | None = None,
) -> dict[str, Any]:
    """Train the causal language model `base` on the train split of `data`, write it to `out`, return its record.

    >>> import tempfile
    >>> from consilience.models import create_causal, load_causal
    >>> place = Path(tempfile.mkdtemp())
    >>> _ = create_causal(place / "base", {"model_type": "llama", "hidden_size": 16, "num_hidden_layers": 1}, "0123+=")
    >>> data = LanguageData.of("sums", train=[("1+1=", "2"), ("1+2=", "3"), ("2+1=", "3")], dev=[("0+1=", "1")])
    >>> record = train_language_model(place / "base", data, place / "out", steps=4, batch=3, rank=2, progress=False)
    >>> record["loss"]["every_step"][0] > record["loss"]["every_step"][3]
    True
    >>> load_causal(f"{place / 'base'}+{place / 'out'}").mean_loss(data.examples("dev")) > 0
    True

    Every token of a text counts; of a pair (prompt, completion) the completion and the end of text. Texts longer than
    `max_tokens` (the model's limit) are cut into windows. Examples identical to dev or test examples, of this data or
    of `against`, and reserved ones, are dropped and counted.

    method: "lora" writes a PEFT adapter, "full" a model folder. steps: None is one epoch. checkpoints: steps after
    which `out/checkpoints/step-N` is written, with the losses so far in its trainer_state.json, and in the record the
    mean loss of the last 10 steps and the dev loss. dev_examples: how many of the dev split are measured (mean loss
    per token, with the weights as written). The other settings, resuming and errors are those of `train_encoder`; the
    default learning rate, 5e-4 for lora and 2e-5 for full, suits large models, a small one takes a hundred times that.
    """
    from consilience.models.causal_loading import load_causal

    opened = data if isinstance(data, LanguageData) else LanguageData.open(data)
    others = [other if isinstance(other, LanguageData) else LanguageData.open(other) for other in against]
    texts = opened.training(against=others)
    settings = LanguageSettings(
        method=method,
        rank=rank,
        alpha=alpha,
        targets=None if targets is None else tuple(targets),
        steps=max(1, len(texts) // max(1, batch)) if steps is None else steps,
        batch=batch,
        learning_rate=LEARNING_RATES.get(method, 1.0) if learning_rate is None else learning_rate,
        schedule=schedule,
        warmup=warmup,
        weight_decay=weight_decay,
        clip=clip,
        dropout=dropout,
        max_tokens=max_tokens,
        seed=seed,
        dtype="bfloat16" if dtype is None and method == "lora" else dtype,
        checkpoints=tuple(sorted(set(checkpoints))),
        dev_examples=dev_examples,
    )
    settings.check()
    model = load_causal(base, device=device, max_tokens=max_tokens)
    run = _Run(str(base), opened, texts.examples, Path(out), settings, model)
    run.facts = {
        "data": {"path": str(opened.folder or opened.name), "split": "train", "licence": licence, **texts.describe()}
    }
    finished = finished_record(run.out, run.request(), _RECORD, _VERSION)
    if finished is not None:
        return finished
    return run.train(state_every=max(1, state_every), threads=threads, budget=budget, shown=progress)


class _Run:
    """One training run: the request, and the way from base to published expert."""

    def __init__(
        self,
        base: str,
        data: LanguageData,
        examples: Sequence[Any],
        out: Path,
        settings: LanguageSettings,
        model: CausalModel,
    ) -> None:
        self.base, self.data, self.examples = base, data, examples
        self.out, self.settings, self.model = out, settings, model
        self.facts: dict[str, Any] = {}
        self.base_files = weight_checksums(model.checkpoint)
        unnamed = {name for name, _ in model.module.named_parameters()} - set(model.names)
        if settings.method == "full" and unnamed:
            raise RequestError(
                f"{base}: {len(unnamed)} parameters are joined from several tensors of the files, such as "
                f"{min(unnamed)}; train an adapter instead (method 'lora')"
            )

    def request(self) -> dict[str, Any]:
        """Return what identifies the run."""
        return {"base": self.base, "base_files": self.base_files, "settings": asdict(self.settings), **self.facts}

    def train(
        self, *, state_every: int, threads: int | None, budget: Budget | None, shown: bool | None
    ) -> dict[str, Any]:
        """Measure the base, train, write checkpoints and the expert, publish."""
        from consilience.training.fitting import fit
        from consilience.training.language_steps import LanguageSteps

        settings = self.settings
        with (
            torch_threads(threads),
            Job(self.out, kind="train", request=self.request(), budget=budget) as job,
            Progress(settings.steps, "steps", f"training {self.out.name}", enabled=shown) as progress,
        ):
            if "base" not in job.done:
                job.record("base", dev=self._dev_loss())
            steps = LanguageSteps(self.model, self.examples, settings)
            trainee = self._trainee()

            def after_step(state: TrainingState) -> None:
                if state.step in settings.checkpoints:
                    self._checkpoint(job, trainee, state)

            self.model.module.train(settings.dropout)
            state = fit(
                steps,
                trainee.parameters,
                settings,
                state_file=job.partial / "state.safetensors",
                state_every=state_every,
                after_step=after_step,
                check=job.check,
                progress=progress,
            )
            self.model.module.eval()
            self._finish(job, trainee, state)
        return read_record(self.out / _RECORD, "expert", _VERSION)

    def _trainee(self) -> Trainee:
        from consilience.training.artefact import CausalAdapter, CausalWeights

        settings = self.settings
        if settings.method == "full":
            return CausalWeights(self.model, dtype=settings.dtype)
        return CausalAdapter(
            self.model,
            self.base,
            rank=settings.rank,
            alpha=settings.alpha,
            targets=settings.targets,
            seed=settings.seed,
            dtype=str(settings.dtype),
        )

    def _dev_loss(self, trainee: Trainee | None = None) -> float | None:
        from consilience.training.artefact import rounded

        examples = self.data.splits.get("dev", ())[: self.settings.dev_examples]
        if not examples:
            return None
        if trainee is None:
            return round(self.model.mean_loss(examples), 5)
        with rounded(trainee):
            return round(self.model.mean_loss(examples), 5)

    def _checkpoint(self, job: Job, trainee: Trainee, state: TrainingState) -> None:
        key = f"step-{state.step}"
        if key in job.done:
            return
        folder = job.work / "checkpoints" / key
        shutil.rmtree(folder, ignore_errors=True)  # left by a run that was killed while writing it
        trainee.write(folder)
        write_text_atomic(folder / "trainer_state.json", json.dumps(_trainer_state(state), indent=1) + "\n")
        job.record(key, step=state.step, loss=_recent(state), dev=self._dev_loss(trainee))

    def _finish(self, job: Job, trainee: Trainee, state: TrainingState) -> None:
        import torch

        trainee.write(job.work)
        saved = [entry for key, entry in job.done.items() if key.startswith("step-")]
        record: Mapping[str, Any] = {
            "base": self.base,
            "base_files": self.base_files,
            **trainee.facts(),
            **self.facts,
            "settings": asdict(self.settings),
            "loss": {
                "kind": "next token, mean over the tokens that count",
                "first": round(state.losses[0], 4),
                "last_10": _recent(state),
                "every_step": [round(loss, 4) for loss in state.losses],
            },
            "checkpoints": [
                {"folder": f"checkpoints/{entry['key']}", **{name: entry[name] for name in ("step", "loss", "dev")}}
                for entry in sorted(saved, key=lambda entry: int(entry["step"]))
            ],
            "dev": {
                "metric": "mean negative log-likelihood per token",
                "examples": len(self.data.splits.get("dev", ())[: self.settings.dev_examples]),
                "base": job.done["base"]["dev"],
                "expert": self._dev_loss(trainee),
            },
            "seconds": round(state.seconds, 1),
            "threads": torch.get_num_threads(),
            "tokens": state.tokens,
            "versions": {name: version(name) for name in ("consilience", "torch", "transformers", "peft")},
        }
        write_record(job.work / _RECORD, "expert", _VERSION, record)
        job.publish()


def _recent(state: TrainingState) -> float:
    """Return the mean loss of the last 10 steps: single batches are noisy."""
    return round(fmean(state.losses[-_WINDOW:]), 5)


def _trainer_state(state: TrainingState) -> dict[str, Any]:
    """Return the losses so far in the form of transformers' Trainer, which tools for checkpoints read."""
    logged = [{"step": step, "loss": round(loss, 5)} for step, loss in enumerate(state.losses, start=1)]
    return {"global_step": state.step, "log_history": logged}
