"""Free embeddings: what vectors of d dimensions can do for a relevance pattern when nothing else limits them.

Query and document vectors are fitted directly to the pattern. The largest number of documents of which every k-subset
can be returned, the critical n, grows with d. What fails beyond is optimisation, margin and precision, not geometry:
`moment_curve` returns every k-subset of any number of documents in 2k dimensions, without normalisation.

Source: Weller et al. 2025 (arXiv 2508.21038); the curve after arXiv 2601.20844.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import combinations

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from consilience.bench.limit import relevance_pattern
from consilience.core.randomness import stream_key
from consilience.errors import RequestError, WorkError

__all__ = ["Fitted", "critical_documents", "fit_embeddings", "moment_curve", "retrieval_accuracy"]

_CHECKED = 50  # steps from one look at the accuracy to the next
_PATIENCE, _LEAST = 1000, 1e-5  # steps without a fall of the loss of this much end the work


@dataclass(frozen=True)
class Fitted:
    """Vectors of queries and documents, of length 1, the share of relevant documents in the top k, and the losses."""

    queries: Tensor
    documents: Tensor
    accuracy: float
    losses: tuple[float, ...]


def fit_embeddings(
    relevance: Sequence[Sequence[int]],
    documents: int | None = None,
    *,
    dimension: int = 4,
    start: tuple[Tensor, Tensor] | None = None,
    temperature: float = 0.1,
    learning_rate: float = 0.01,
    steps: int = 100_000,
    seed: int = 0,
) -> Fitted:
    """Fit vectors to a pattern by Adam, all queries at once.

    >>> fit_embeddings([(0, 1), (0, 2), (1, 2)], dimension=3, seed=1).accuracy
    1.0

    The loss is the mean over all relevant pairs of -log softmax over all documents of the inner product / temperature;
    after a step both sides are brought to length 1. Stops where every relevant document is in its query's top k, where
    the loss has not fallen by 1e-5 in 1,000 steps, or after `steps`. start: vectors instead of drawn ones.

    Raises RequestError for queries with different numbers of relevant documents, WorkError for a loss that is NaN.
    """
    sizes = {len(held) for held in relevance}
    if len(sizes) != 1 or not relevance or dimension < 1 or steps < 1:
        raise RequestError(f"free embedding: {sorted(sizes)} relevant documents a query; all have the same number")
    count = documents or max(one for held in relevance for one in held) + 1
    pairs = torch.tensor([list(held) for held in relevance])
    if start is None:
        generator = torch.Generator().manual_seed(stream_key(seed, "free embedding") >> 1)
        start = (
            torch.randn(len(relevance), dimension, generator=generator),
            torch.randn(count, dimension, generator=generator),
        )
        start = (_unit(start[0]), _unit(start[1]))
    queries, held = (one.clone().requires_grad_(True) for one in start)
    optimiser = torch.optim.Adam([queries, held], lr=learning_rate)
    losses: list[float] = []
    best, since = float("inf"), 0
    for step in range(1, steps + 1):
        loss = -((queries @ held.T) / temperature).log_softmax(dim=1).gather(1, pairs).mean()
        losses.append(float(loss.detach()))
        if not np.isfinite(losses[-1]):
            raise WorkError(f"free embedding: the loss is {losses[-1]} in step {step}; lower the learning rate")
        optimiser.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        optimiser.step()
        with torch.no_grad():
            queries.copy_(_unit(queries))
            held.copy_(_unit(held))
        if losses[-1] < best - _LEAST:
            best, since = losses[-1], 0
        else:
            since += 1
        if since >= _PATIENCE or (step % _CHECKED == 0 and retrieval_accuracy(queries, held, relevance) == 1):
            break
    found = (queries.detach(), held.detach())
    return Fitted(*found, retrieval_accuracy(*found, relevance), tuple(losses))


def _unit(vectors: Tensor) -> Tensor:
    return torch.nn.functional.normalize(vectors, dim=1)


def retrieval_accuracy(queries: Tensor, documents: Tensor, relevance: Sequence[Sequence[int]]) -> float:
    """Return the share of relevant documents that are among the top k of their query; ties to the lower number."""
    with torch.no_grad():
        order = (queries @ documents.T).argsort(dim=1, descending=True, stable=True)
    hits = sum(len(set(held) & set(row[: len(held)])) for held, row in zip(relevance, order.tolist(), strict=True))
    return hits / sum(len(held) for held in relevance)


def critical_documents(
    dimension: int, *, k: int = 2, seed: int = 0, restarts: int = 5, steps: int = 100_000, most: int = 200
) -> tuple[int, dict[int, float]]:
    """Return the largest number of documents of which every k-subset can be returned, and every accuracy measured.

    >>> critical_documents(3, most=3)
    (3, {2: 1.0, 3: 1.0})

    Numbers are doubled until one fails, then halved between, then the four below and five above the end are looked at.
    A number fails when `restarts` fits from different starts do: in few dimensions one can get stuck with two documents
    in one place. most: documents that are looked at.
    """
    tried: dict[int, float] = {}

    def works(count: int) -> bool:
        pattern = relevance_pattern("dense", documents=count, k=k)
        for start in range(restarts if count not in tried else 0):
            fitted = fit_embeddings(pattern, count, dimension=dimension, seed=seed + start, steps=steps)
            tried[count] = max(tried.get(count, 0.0), fitted.accuracy)
            if tried[count] == 1:
                break
        return tried[count] == 1

    low, high = k, k + 1
    while high <= most and works(high):
        low, high = high, min(2 * high, most + 1)
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (middle, high) if works(middle) else (low, middle)
    for count in range(max(low - 4, k), min(low + 6, most + 1)):
        if works(count):
            low = max(low, count)
    return low, dict(sorted(tried.items()))


def moment_curve(
    points: Sequence[float] | NDArray[np.float64], k: int
) -> tuple[NDArray[np.float64], list[tuple[int, ...]], NDArray[np.float64]]:
    """Return documents (n, 2k), all k-subsets, and a query (subsets, 2k) for each that scores its documents highest.

    >>> documents, subsets, queries = moment_curve([-1.0, -0.5, 0.0, 0.5, 1.0], 2)
    >>> bool(((queries @ documents.T).argsort(axis=1)[:, -2:].min(axis=1) == [min(s) for s in subsets]).all())
    True

    A document is (t, t^2, ..., t^2k); a query has the coefficients of -product of (t - t_i)^2 over its documents, which
    is 0 at them and negative elsewhere. points: different numbers, best between -1 and 1.
    """
    values = np.asarray(points, np.float64)
    if len(np.unique(values)) != len(values) or not 1 <= k <= len(values):
        raise RequestError(f"moment curve: {len(values)} points, {len(np.unique(values))} different, k {k}")
    documents = np.stack([values**power for power in range(1, 2 * k + 1)], axis=1)
    subsets = list(combinations(range(len(values)), k))
    queries = [-np.poly(np.repeat(values[list(own)], 2))[::-1][1:] for own in subsets]
    return documents, subsets, np.array(queries)
