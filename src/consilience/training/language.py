"""Make a language expert: next-token training of a causal language model, with checkpoints and a record."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from consilience.core.atomic import write_text_atomic
from consilience.core.jobs import Budget
from consilience.data.language import LanguageData
from consilience.errors import RequestError
from consilience.training.run import TrainingRun, weight_checksums
from consilience.training.settings import LEARNING_RATES, LanguageSettings

if TYPE_CHECKING:
    from consilience.models.causal import CausalModel
    from consilience.training.artefact import Trainee
    from consilience.training.fitting import TrainingState

__all__ = ["train_language_model"]


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
    finished = run.finished()
    if finished is not None:
        return finished
    return run.train(state_every=max(1, state_every), threads=threads, budget=budget, shown=progress)


class _Run(TrainingRun):
    """Next-token training."""

    window = 10
    settings: LanguageSettings

    def __init__(
        self,
        base: str,
        data: LanguageData,
        examples: Sequence[Any],
        out: Path,
        settings: LanguageSettings,
        model: CausalModel,
    ) -> None:
        super().__init__(base, out, settings, weight_checksums(model.checkpoint))
        self.data, self.examples, self.model = data, examples, model
        self.facts: dict[str, Any] = {}
        unnamed = {name for name, _ in model.module.named_parameters()} - set(model.names)
        if settings.method == "full" and unnamed:
            raise RequestError(
                f"{base}: {len(unnamed)} parameters are joined from several tensors of the files, such as "
                f"{min(unnamed)}; train an adapter instead (method 'lora')"
            )

    def request(self) -> dict[str, Any]:
        """Return what identifies the run."""
        return {"base": self.base, "base_files": self.base_files, "settings": asdict(self.settings), **self.facts}

    def trainee(self) -> Trainee:
        """Return the model's weights, or an adapter of them."""
        from consilience.training.artefact import CausalAdapter, CausalWeights

        if self.settings.method == "full":
            return CausalWeights(self.model, dtype=self.settings.dtype)
        return CausalAdapter(self.model, self.base, **self.adapter_options())

    def _held(self) -> Sequence[Any]:
        return self.data.splits.get("dev", ())[: self.settings.dev_examples]

    def measure(self) -> float | None:
        """Return the mean loss on dev; None without dev examples."""
        examples = self._held()
        return round(self.model.mean_loss(examples), 5) if examples else None

    def descend(self, trainee: Trainee, **how: Any) -> TrainingState:
        """Take all steps on the texts."""
        from consilience.training.fitting import fit
        from consilience.training.language_steps import LanguageSteps

        steps = LanguageSteps(self.model, self.examples, self.settings)
        self.model.module.train(self.settings.dropout)
        state = fit(steps, trainee.parameters, self.settings, **how)
        self.model.module.eval()
        return state

    def write(self, trainee: Trainee, folder: Path, state: TrainingState) -> None:
        """Write the weights; beside those of a checkpoint, the losses so far."""
        trainee.write(folder)
        if folder.parent.name == "checkpoints":
            write_text_atomic(folder / "trainer_state.json", json.dumps(_trainer_state(state), indent=1) + "\n")

    def described(self, dev: Mapping[str, Any], state: TrainingState) -> dict[str, Any]:
        """Return the record's own part."""
        return {
            **self.facts,
            "settings": asdict(self.settings),
            "loss": {
                "kind": "next token, mean over the tokens that count",
                "first": round(state.losses[0], 4),
                "last_10": self.recent(state),
                "every_step": [round(loss, 4) for loss in state.losses],
            },
            "checkpoints": [{"folder": f"checkpoints/{key}", **entry} for key, entry in dev["checkpoints"].items()],
            "dev": {
                "metric": "mean negative log-likelihood per token",
                "examples": len(self._held()),
                "base": dev["base"],
                "expert": dev["expert"],
            },
        }


def _trainer_state(state: TrainingState) -> dict[str, Any]:
    """Return the losses so far in the form of transformers' Trainer, which tools for checkpoints read."""
    logged = [{"step": step, "loss": round(loss, 5)} for step, loss in enumerate(state.losses, start=1)]
    return {"global_step": state.step, "log_history": logged}
