"""Two embedding tasks on a small mean-pooled encoder: documents for queries, and graded similarity with less data.

Word vectors are averaged and mapped by one matrix: 0.5 million weights that train in seconds. The base learns, without
labels, which halves of documents belong together; experts go on from it.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import cached_property
from itertools import chain
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional

from consilience.bench.experiments.family import State
from consilience.bench.search import search
from consilience.core.randomness import stream_key
from consilience.data import Metric, RetrievalData, evaluation_set, measure
from consilience.data.graded import GradedData
from consilience.data.reserved import default_data_folder
from consilience.training.loss import in_batch_negatives

__all__ = ["PairModel", "WordPairs"]

Pair = tuple[str, str]
Batch = tuple[Tensor, Tensor, Tensor]

_METRIC = Metric("nDCG", 10)
_WORD = re.compile(r"\w+")
_LENGTH = 48  # words of a text that are read
_SCALE = 20.0
_ALIKE = 0.8  # score from which a graded pair is a pair of a probe


class PairModel:
    """A predictor of the text that belongs to another, among those of the batch; `texts` counts what it encoded.

    An example is a pair of texts. Equal second texts of a batch are no negatives of each other.
    """

    def __init__(self, family: WordPairs, name: str) -> None:
        self.family, self.name = family, name
        self.module: nn.Module = nn.ParameterDict(family.initial())
        self.names: Mapping[str, str] = {name: name for name in family.initial()}
        self.texts = 0

    def batches(self, examples: Sequence[Pair], size: int) -> Iterator[Batch]:
        """Yield pairs as batches of `size`, in their order."""
        for start in range(0, len(examples), size):
            pairs = examples[start : start + size]
            first, second = (self.family.tokens([pair[side] for pair in pairs]) for side in (0, 1))
            yield first, second, torch.tensor([[a[1] == b[1] for b in pairs] for a in pairs])

    def logits(self, batch: Batch, parameters: Mapping[str, Tensor] | None = None) -> Tensor:
        """Return cosine x 20, (first texts, second texts); minus infinity for equal second texts."""
        first, second = self._vectors(batch, parameters)
        own = torch.eye(len(first), dtype=torch.bool)
        cosine = functional.normalize(first, dim=-1) @ functional.normalize(second, dim=-1).T
        return (cosine * _SCALE).masked_fill(batch[2] & ~own, float("-inf"))

    def loss(
        self,
        batch: Batch,
        parameters: Mapping[str, Tensor] | None = None,
        *,
        reduction: Literal["mean", "none"] = "mean",
    ) -> Tensor:
        """Return in-batch InfoNCE: the mean, or one value per pair."""
        logits = self.logits(batch, parameters)
        return functional.cross_entropy(logits, torch.arange(len(logits)), reduction=reduction)

    def _vectors(self, batch: Batch, parameters: Mapping[str, Tensor] | None) -> list[Tensor]:
        state = {**dict(self.module.named_parameters()), **(parameters or {})}
        self.texts += 2 * len(batch[0])
        return [self.family.vectors(tokens, state) for tokens in batch[:2]]


class WordPairs:
    """The tasks "retrieval" (nDCG@10) and "similarity" (Spearman), their experts and what joint training makes.

    retrieval, similarity: sets of the public data (`CONSILIENCE_DATA`). pairs: training pairs for queries; similarity
    has a tenth as many. steps: of the base and of each expert; joint training takes as many as both experts.
    """

    tasks = ("retrieval", "similarity")

    def __init__(
        self,
        retrieval: str = "software_debian",
        similarity: str = "stsb",
        *,
        pairs: int = 8000,
        vocabulary: int = 8000,
        width: int = 64,
        steps: int = 400,
        queries: int = 300,
        documents: int = 1500,
        folder: str | Path | None = None,
    ) -> None:
        place = default_data_folder() if folder is None else Path(folder)
        self.data = RetrievalData.open(place / "retrieval" / retrieval)
        self.graded = GradedData.open(place / "sts" / similarity)
        self.pairs, self.vocabulary, self.width, self.steps = pairs, vocabulary, width, steps
        self.caps = {"queries": queries, "documents": documents}
        self._words: dict[str, list[int]] = {}

    @cached_property
    def _query_pairs(self) -> list[Pair]:
        return list(self.data.training_pairs().pairs()[: self.pairs])

    @cached_property
    def _graded_pairs(self) -> list[tuple[str, str, float]]:
        part = self.graded.training(against=[self.data]).sample(max(self.pairs // 10, 8))
        return list(zip(part.first, part.second, part.scores, strict=True))

    @cached_property
    def _ids(self) -> dict[str, int]:
        counts: Counter[str] = Counter()
        graded = (text for pair in self._graded_pairs for text in pair[:2])
        for text in chain.from_iterable((*self._query_pairs, graded)):
            counts.update(_WORD.findall(text.lower()))
        return {word: place + 1 for place, (word, _) in enumerate(counts.most_common(self.vocabulary - 1))}

    def initial(self) -> State:
        """Return weights before any training."""
        generator = torch.Generator().manual_seed(0)
        table = torch.randn(self.vocabulary, self.width, generator=generator) * 0.1
        return {"words": table, "map": torch.eye(self.width)}

    def tokens(self, texts: Sequence[str]) -> Tensor:
        """Return word numbers, (texts, words), filled up with 0."""
        rows = []
        for text in texts:
            if text not in self._words:
                found = [self._ids.get(word, 0) for word in _WORD.findall(text.lower())]
                self._words[text] = [number for number in found if number][:_LENGTH] or [0]
            rows.append(torch.tensor(self._words[text]))
        return nn.utils.rnn.pad_sequence(rows, batch_first=True)

    def vectors(self, tokens: Tensor, state: Mapping[str, Tensor]) -> Tensor:
        """Return the vectors of tokenised texts, (texts, width)."""
        there = (tokens > 0).to(torch.float32)[..., None]
        mean = (functional.embedding(tokens, state["words"]) * there).sum(dim=1) / there.sum(dim=1).clamp(min=1)
        vectors: Tensor = mean @ state["map"].T
        return vectors

    def model(self, task: str) -> PairModel:
        """Return a predictor for the probe of a task."""
        return PairModel(self, task)

    def probe(self, task: str, count: int) -> list[Pair]:
        """Return training pairs of texts that belong together."""
        if task == "retrieval":
            return self._query_pairs[:count]
        return [(first, second) for first, second, score in self._graded_pairs if score >= _ALIKE][:count]

    def base(self, seed: int) -> State:
        """Train on halves of documents."""
        halves = []
        for _, document in self._query_pairs:
            words = document.split()
            if len(words) > 7:
                halves.append((" ".join(words[::2]), " ".join(words[1::2])))
        return self._trained(self.initial(), [("base", self._contrast(halves))], [1.0], self.steps, seed)

    def expert(self, task: str, base: State, seed: int) -> State:
        """Fine-tune the base on one task."""
        return self._trained(base, [(task, self._objectives[task])], [1.0], self.steps, seed)

    def joint(self, base: State, seed: int, *, balanced: bool = False) -> State:
        """Fine-tune the base on both tasks; a step's task is drawn by the amounts of data, or evenly if `balanced`."""
        sizes = [1.0, 1.0] if balanced else [float(len(self._query_pairs)), float(len(self._graded_pairs))]
        shares = [size / sum(sizes) for size in sizes]
        return self._trained(base, list(self._objectives.items()), shares, 2 * self.steps, seed)

    @cached_property
    def _objectives(self) -> dict[str, Callable[[State, np.random.Generator], Tensor]]:
        return {"retrieval": self._contrast(self._query_pairs), "similarity": self._regression}

    def _contrast(self, pairs: Sequence[Pair]) -> Callable[[State, np.random.Generator], Tensor]:
        def loss(state: State, random: np.random.Generator) -> Tensor:
            drawn = [pairs[place] for place in random.integers(len(pairs), size=64).tolist()]
            same = torch.tensor([[a[1] == b[1] or a[0] == b[0] for b in drawn] for a in drawn])
            first, second = (self.vectors(self.tokens([pair[i] for pair in drawn]), state) for i in (0, 1))
            return in_batch_negatives(first, second, same, scale=_SCALE)

        return loss

    def _regression(self, state: State, random: np.random.Generator) -> Tensor:
        drawn = [self._graded_pairs[i] for i in random.integers(len(self._graded_pairs), size=64).tolist()]
        first, second = (self.vectors(self.tokens([row[i] for row in drawn]), state) for i in (0, 1))
        return functional.mse_loss(functional.cosine_similarity(first, second), torch.tensor([r[2] for r in drawn]))

    def _trained(
        self,
        start: State,
        objectives: Sequence[tuple[str, Callable[[State, np.random.Generator], Tensor]]],
        shares: Sequence[float],
        steps: int,
        seed: int,
    ) -> State:
        leaves = {name: value.clone().requires_grad_(True) for name, value in start.items()}
        optimiser = torch.optim.Adam(list(leaves.values()), lr=2e-3)
        names = [name for name, _ in objectives]
        random = np.random.Generator(np.random.Philox(stream_key(seed, "word pairs", *names)))
        for _ in range(steps):
            loss = objectives[int(random.choice(len(objectives), p=shares))][1](leaves, random)
            optimiser.zero_grad()
            loss.backward()  # type: ignore[no-untyped-call]
            optimiser.step()
        return {name: leaf.detach() for name, leaf in leaves.items()}

    def texts(self, split: str) -> int:
        """Return how many texts one measurement encodes."""
        drawn = self._drawn(split)
        return len(drawn.queries) + len(drawn.documents) + 2 * len(self.graded.pairs(split))

    def _drawn(self, split: str) -> Any:
        return evaluation_set(self.data, split, **self.caps)

    def measure(self, state: State, split: str) -> dict[str, float]:
        """Return nDCG@10 and Spearman's rank correlation on a split."""
        from scipy.stats import spearmanr

        drawn, graded = self._drawn(split), self.graded.pairs(split)
        ranking = search(self._encoded(drawn.queries, state), self._encoded(drawn.documents, state), _METRIC.cutoff)
        found = measure([_METRIC], ranking, drawn.qrels)[_METRIC]
        first, second = (torch.from_numpy(self._encoded(texts, state)) for texts in (graded.first, graded.second))
        cosine = functional.cosine_similarity(first, second).numpy()
        return {"retrieval": float(found.mean()), "similarity": float(spearmanr(cosine, graded.scores).statistic)}

    def _encoded(self, texts: Sequence[str], state: State) -> NDArray[np.float32]:
        with torch.inference_mode():
            return np.asarray(self.vectors(self.tokens(texts), state).numpy(), np.float32)
