"""What an encoder is trained on: the loss of a step, what dev measures, what the record says of the data."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import cached_property
from typing import TYPE_CHECKING, Any, Protocol

from consilience.data import EvaluationSet, RetrievalData, evaluation_set

if TYPE_CHECKING:
    from torch import Tensor

    from consilience.models.encoder import DenseEncoder
    from consilience.training.settings import Settings

__all__ = ["EncoderTask", "RetrievalTask", "dev_sample"]


class EncoderTask(Protocol):
    """The data of a run and what is done with it."""

    @property
    def kind(self) -> str:
        """The loss, in words."""
        ...

    def request(self) -> dict[str, Any]:
        """Return what identifies the data: a run of other data is another one."""
        ...

    def settings(self) -> dict[str, Any]:
        """Return settings that other tasks do not have."""
        ...

    def loss(self, encoder: DenseEncoder, settings: Settings) -> Callable[[int], tuple[Tensor, int]]:
        """Return the function that gives the loss of a step and the number of tokens it took."""
        ...

    def measure(self, encoder: DenseEncoder, settings: Settings) -> Any:
        """Return what dev says of the encoder as it is; None without a dev split."""
        ...

    def data_facts(self, licence: str | None) -> Any:
        """Return what the record says of the data."""
        ...

    def dev_facts(self, settings: Settings) -> dict[str, Any]:
        """Return what the record says of the dev sample."""
        ...


def dev_sample(data: RetrievalData, settings: Settings) -> EvaluationSet | None:
    """Return the dev sample of a dataset; None where it has no dev split or the settings ask for none."""
    if "dev" not in data.splits or not settings.dev_queries:
        return None
    return evaluation_set(data, "dev", queries=settings.dev_queries, documents=settings.dev_documents or None)


class RetrievalTask:
    """One retrieval dataset, in-batch negatives."""

    kind = "in-batch negatives, cosine x scale, cross-entropy; other relevant documents masked"

    def __init__(self, data: RetrievalData, against: Sequence[RetrievalData]) -> None:
        self.data = data
        self.pairs = data.training_pairs(against=against)
        self._sample: EvaluationSet | None = None

    @cached_property
    def _path(self) -> str:
        return str(self.data.folder or self.data.name)

    def request(self) -> dict[str, Any]:
        """Return what identifies the data."""
        return {"data": self._path, "pairs": self.pairs.content_hash}

    def settings(self) -> dict[str, Any]:
        """Return settings that other tasks do not have: none."""
        return {}

    def loss(self, encoder: DenseEncoder, settings: Settings) -> Callable[[int], tuple[Tensor, int]]:
        """Return the loss of a step."""
        from consilience.training.batches import Batches
        from consilience.training.loop import pair_loss

        return pair_loss(encoder, Batches(self.pairs, size=settings.batch, seed=settings.seed), settings)

    def measure(self, encoder: DenseEncoder, settings: Settings) -> float | None:
        """Return the mean nDCG@10 x 100 of the dev sample."""
        from consilience.training.dev import mean_ndcg

        sample = self._drawn(settings)
        return None if sample is None else mean_ndcg(encoder, sample)

    def _drawn(self, settings: Settings) -> EvaluationSet | None:
        if self._sample is None:
            self._sample = dev_sample(self.data, settings)
        return self._sample

    def data_facts(self, licence: str | None) -> dict[str, Any]:
        """Return what the record says of the data."""
        return {"path": self._path, "split": "train", "licence": licence, **self.pairs.describe()}

    def dev_facts(self, settings: Settings) -> dict[str, Any]:
        """Return what the record says of the dev sample."""
        sample = self._drawn(settings)
        return {
            "metric": "nDCG@10 x 100",
            "queries": 0 if sample is None else len(sample.queries),
            "documents": 0 if sample is None else len(sample.documents),
        }
