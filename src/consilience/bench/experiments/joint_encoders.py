"""Text encoders trained on retrieval and graded similarity together, and their checkpoints fused."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from consilience.bench.experiments.scores import Scores
from consilience.bench.experiments.small_encoder import first_layers
from consilience.bench.experiments.workbench import CACHE
from consilience.core.hashing import fingerprint
from consilience.data import RetrievalData, evaluation_set, ndcg_at
from consilience.data.graded import GradedData
from consilience.data.metrics import spearman
from consilience.data.reserved import default_data_folder

if TYPE_CHECKING:
    from consilience.bench.experiments.family import State
    from consilience.models.encoder import DenseEncoder
    from consilience.training import Joint

__all__ = ["JointEncoders", "JointScores"]


@dataclass(frozen=True)
class JointScores:
    """What one encoder scored on the test splits: nDCG@10 (0 to 1) per query, Spearman's correlation per set."""

    retrieval: Scores
    similarity: Mapping[str, float]

    @property
    def ndcg(self) -> float:
        """Mean nDCG@10 over datasets, x 100."""
        return 100 * self.retrieval.mean

    @property
    def spearman(self) -> float:
        """Mean correlation over datasets, x 100."""
        return 100 * float(np.mean(list(self.similarity.values())))

    @property
    def mean(self) -> float:
        """The mean of both."""
        return (self.ndcg + self.spearman) / 2


class JointEncoders:
    """The first layers of an encoder, trained on public retrieval and similarity data.

    folder: of the public data (`$CONSILIENCE_DATA`, else ../shared/data). retrieval, graded: names of datasets there.
    layers: of all-MiniLM-L6-v2. queries, documents: most of each retrieval test set. pairs: most of each graded one.
    max_tokens: longest input. Raises DataError naming what is
    missing.
    """

    def __init__(
        self,
        folder: str | Path | None = None,
        *,
        retrieval: Sequence[str] = ("code_python", "finance_tatqa"),
        graded: Sequence[str] = ("stsb", "sick"),
        layers: int = 2,
        queries: int = 400,
        documents: int = 1500,
        pairs: int = 1500,
        max_tokens: int = 48,
        cache: str | Path | None = None,
    ) -> None:
        place = default_data_folder() if folder is None else Path(folder)
        self.retrieval = [RetrievalData.open(place / "retrieval" / name) for name in retrieval]
        self.graded = [GradedData.open(place / "sts" / name) for name in graded]
        self.cache, self.max_tokens = Path(CACHE if cache is None else cache), max_tokens
        self.base = first_layers(layers, self.cache)
        self.searched = [evaluation_set(data, "test", queries=queries, documents=documents) for data in self.retrieval]
        self.measured = [data.pairs("test").sample(pairs) for data in self.graded]

    def trained(self, joint: Joint, seed: int, **settings: Any) -> Path:
        """Return the folder of an encoder trained in full on all datasets; settings as `train_encoder`. Made once."""
        from consilience.training import train_encoder

        key = fingerprint([asdict(joint), settings, str(self.base), self.max_tokens])
        out = self.cache / "joint-encoders" / f"{key}-seed-{seed}"
        train_encoder(
            self.base,
            [*self.retrieval, *self.graded],
            out,
            joint=joint,
            method="full",
            dtype="float32",
            dev_queries=0,
            max_tokens=self.max_tokens,
            seed=seed,
            device="cpu",
            **settings,
        )
        return out

    def encoder(self, folder: str | Path | None = None) -> DenseEncoder:
        """Return an encoder: that of a folder, or the base."""
        from consilience.models import load_encoder

        return load_encoder(folder or self.base, device="cpu", max_tokens=self.max_tokens)

    def state(self, folder: str | Path | None = None) -> State:
        """Return the weights of a folder, or of the base, by tensor name."""
        return {name: value.detach() for name, value in self.encoder(folder).parameters().items()}

    def fused(self, method: str, folders: Sequence[Path], **parameters: Any) -> State:
        """Return the weights of several checkpoints merged by a method."""
        from consilience.merging.memory import merge_state_dicts

        experts = {f"checkpoint-{place}": self.state(folder) for place, folder in enumerate(folders)}
        return dict(merge_state_dicts(method, self.state(), experts, **parameters))

    def scores(self, state: State | Path | None = None) -> JointScores:
        """Measure weights, a folder, or the base (None) on the test splits."""
        encoder = self.encoder(state if isinstance(state, Path) else None)
        weights = state if isinstance(state, dict) else None
        found: dict[str, NDArray[np.float64]] = {}
        for sample in self.searched:
            vectors = _unit(encoder.encode([*sample.queries, *sample.documents], parameters=weights))
            count = len(sample.queries)
            found[sample.name] = ndcg_at(vectors[:count] @ vectors[count:].T, sample.qrels)
        alike = {}
        for pairs in self.measured:
            vectors = _unit(encoder.encode([*pairs.first, *pairs.second], parameters=weights))
            first, second = np.split(vectors, 2)
            alike[pairs.name] = spearman((first * second).sum(axis=1), pairs.scores)
        return JointScores(Scores(found), alike)


def _unit(vectors: NDArray[np.float32]) -> NDArray[np.float64]:
    wide = vectors.astype(np.float64)
    return np.asarray(wide / np.linalg.norm(wide, axis=1, keepdims=True).clip(min=1e-12))
