"""Several datasets together: retrieval and graded similarity, each measured by its own metric."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

from consilience.data import EvaluationSet, RetrievalData
from consilience.data.graded import GradedData, GradedPairs
from consilience.data.pairs import TrainingPairs
from consilience.errors import RequestError
from consilience.training.encoder_task import dev_sample
from consilience.training.settings import Joint

if TYPE_CHECKING:
    from torch import Tensor

    from consilience.models.encoder import DenseEncoder
    from consilience.training.settings import Settings

__all__ = ["JointTask"]

_METRICS = {True: "Spearman x 100", False: "nDCG@10 x 100"}


class JointTask:
    """Datasets that are trained on together; see `Joint`. Raises RequestError for two of one name."""

    def __init__(
        self,
        datasets: Sequence[RetrievalData | GradedData],
        against: Sequence[RetrievalData | GradedData],
        joint: Joint,
    ) -> None:
        joint.check()
        names = [data.name for data in datasets]
        twice = sorted({name for name in names if names.count(name) > 1})
        if twice:
            raise RequestError(f"datasets are told apart by name; there are two named {', '.join(twice)}")
        self.datasets, self.joint = list(datasets), joint
        every = [*datasets, *against]
        searched = [data for data in every if isinstance(data, RetrievalData)]
        self.parts: list[TrainingPairs | GradedPairs] = [
            data.training_pairs(against=searched) if isinstance(data, RetrievalData) else data.training(against=every)
            for data in datasets
        ]
        self.notices: tuple[str, ...] = ()
        self._samples: dict[str, EvaluationSet | GradedPairs] | None = None

    @property
    def kind(self) -> str:
        """The losses, in words."""
        if self.joint.objective == "infonce":
            return f"InfoNCE of cosine / temperature on every dataset, batches {self.joint.sampler}"
        return "retrieval: InfoNCE over groups; graded pairs: middle-layer InfoNCE, Pearson, preference and rank losses"

    def request(self) -> dict[str, Any]:
        """Return what identifies the data."""
        return {
            "data": [str(data.folder or data.name) for data in self.datasets],
            "pairs": [part.content_hash for part in self.parts],
        }

    def settings(self) -> dict[str, Any]:
        """Return the settings of joint training."""
        return {"joint": asdict(self.joint)}

    def loss(self, encoder: DenseEncoder, settings: Settings) -> Callable[[int], tuple[Tensor, int]]:
        """Return the loss of a step; datasets that never are on turn are named on standard error."""
        import warnings

        from consilience.training.joint_steps import JointSteps

        steps = JointSteps(encoder, self.parts, settings, self.joint)
        self.notices = steps.batches.notices
        for notice in self.notices:
            warnings.warn(notice, stacklevel=2)
        return steps

    def _drawn(self, settings: Settings) -> dict[str, EvaluationSet | GradedPairs]:
        if self._samples is None:
            self._samples = {}
            for data in self.datasets:
                if isinstance(data, RetrievalData):
                    sample = dev_sample(data, settings)
                    if sample is not None:
                        self._samples[data.name] = sample
                elif "dev" in data.splits and settings.dev_queries:
                    pairs = data.pairs("dev")
                    self._samples[data.name] = pairs.sample(settings.dev_documents or len(pairs))
        return self._samples

    def measure(self, encoder: DenseEncoder, settings: Settings) -> dict[str, float] | None:
        """Return the metric of every dataset with a dev split."""
        from consilience.training.dev import mean_ndcg, pair_correlation

        found = {
            name: mean_ndcg(encoder, sample) if isinstance(sample, EvaluationSet) else pair_correlation(encoder, sample)
            for name, sample in self._drawn(settings).items()
        }
        return found or None

    def data_facts(self, licence: str | None) -> dict[str, Any]:
        """Return what the record says of the data."""
        listed = [
            {"path": str(data.folder or data.name), "split": "train", **part.describe()}
            for data, part in zip(self.datasets, self.parts, strict=True)
        ]
        return {"licence": licence, "datasets": listed, "notices": list(self.notices)}

    def dev_facts(self, settings: Settings) -> dict[str, Any]:
        """Return what the record says of the dev samples."""
        samples = self._drawn(settings)
        return {
            "metric": {name: _METRICS[isinstance(sample, GradedPairs)] for name, sample in samples.items()},
            "queries": {name: len(sample.queries) for name, sample in _searched(samples)},
            "documents": {name: len(sample.documents) for name, sample in _searched(samples)},
            "pairs": {name: len(sample) for name, sample in samples.items() if isinstance(sample, GradedPairs)},
        }


def _searched(samples: dict[str, EvaluationSet | GradedPairs]) -> list[tuple[str, EvaluationSet]]:
    return [(name, sample) for name, sample in samples.items() if isinstance(sample, EvaluationSet)]
