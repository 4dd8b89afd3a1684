"""Training pairs in batches: which query goes with which document, what else is relevant, in which order."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from consilience.core.randomness import stream_key, uniform_bits
from consilience.data import TrainingPairs
from consilience.errors import DataError

__all__ = ["Batches"]


class Batches:
    """Batches of (query, relevant document) pairs, a function of (seed, step) alone.

    >>> from consilience.data import Documents, TrainingPairs
    >>> documents = Documents(("d1", "d2", "d3"), ("x", "y", "z"))
    >>> pairs = TrainingPairs("tiny", ("a", "b"), ((0, 2), (2,)), ((), ()), documents)
    >>> batches = Batches(pairs, size=3, seed=0)
    >>> batches.documents, batches.pairs.tolist()
    (['x', 'z'], [[0, 0], [0, 1], [1, 1]])

    `queries` and `documents` are texts (documents: those that are relevant for some query); `pairs` (n, 2) holds
    positions in them. Raises DataError when a batch is larger than the data.
    """

    def __init__(self, pairs: TrainingPairs, *, size: int, seed: int) -> None:
        used = sorted({document for relevant in pairs.positives for document in relevant})
        place = {document: index for index, document in enumerate(used)}
        self.queries = list(pairs.queries)
        self.documents = [pairs.documents.texts[document] for document in used]
        self.judged = [frozenset(place[document] for document in relevant) for relevant in pairs.positives]
        listed = [(query, document) for query, relevant in enumerate(self.judged) for document in sorted(relevant)]
        self.pairs = np.array(listed, np.int64).reshape(-1, 2)
        self.size, self.seed = size, seed
        if size > len(self.pairs):
            raise DataError(
                f"dataset {pairs.name}: the batch is {size}, but there are only {len(self.pairs)} training pairs; "
                "use a smaller batch"
            )

    def __len__(self) -> int:
        return len(self.pairs)

    def at(self, step: int) -> NDArray[np.int64]:
        """Return the (size, 2) pairs of a step (0, 1, ...); an epoch is a permutation, its remainder is left out."""
        epoch, place = divmod(step, len(self.pairs) // self.size)
        draws = uniform_bits(stream_key(self.seed, "order", str(epoch)), 0, len(self.pairs))
        order = np.argsort(draws, kind="stable")
        return self.pairs[order[place * self.size : (place + 1) * self.size]]

    def relevant(self, batch: NDArray[np.int64]) -> NDArray[np.bool_]:
        """Return (size, size): is the document of row j judged relevant for the query of row i."""
        queries, documents = batch.T
        return np.array([[int(document) in self.judged[query] for document in documents] for query in queries])
