"""What late-interaction encoders are taught by and compared with: a lexical teacher, fixed lengths, single vectors."""

from __future__ import annotations

import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Literal

import numpy as np
from numpy.typing import NDArray

from consilience.data.metrics import ndcg_at
from consilience.data.pairs import TrainingPairs
from consilience.data.retrieval import Documents, RetrievalData
from consilience.data.sampling import EvaluationSet

if TYPE_CHECKING:
    from consilience.models.batching import Tokens
    from consilience.models.late_interaction import LateInteractionEncoder

__all__ = ["first_pairs", "lexical_teacher", "ndcg_of_queries"]

_PHRASES = 0.5  # how much the longest run of the query's words counts beside BM25
_FIXED = 32


def first_pairs(sets: Sequence[RetrievalData], queries: int, documents: int) -> TrainingPairs:
    """Return the first training queries of some sets, one relevant document of each, and the first documents.

    >>> texts = {"d1": "red", "d2": "blue", "d3": "tax"}
    >>> data = RetrievalData.of("tiny", documents=texts, queries={"q": ("red?", "train")}, judgements=[("q", "d1", 1)])
    >>> first_pairs([data], 1, 2).documents.texts
    ('red', 'blue')
    """
    asked: list[str] = []
    relevant: list[tuple[int, ...]] = []
    texts: dict[str, int] = {}
    for data in sets:
        pairs = data.training_pairs()
        for query, own in list(zip(pairs.queries, pairs.positives, strict=True))[:queries]:
            asked.append(query)
            relevant.append((texts.setdefault(pairs.documents.texts[own[0]], len(texts)),))
        for text in pairs.documents.texts[:documents]:
            texts.setdefault(text, len(texts))
    held = Documents(tuple(map(str, range(len(texts)))), tuple(texts))
    name = "-".join(data.name for data in sets)
    return TrainingPairs(name, tuple(asked), tuple(relevant), ((),) * len(asked), held)


def lexical_teacher(queries: Sequence[str], texts: Sequence[str]) -> NDArray[np.float32]:
    """Return BM25 of every text, 0 to 1 in each query, and half the share of the query's longest run of words in it.

    >>> lexical_teacher(["red cat"], ["a red cat", "the cat is red", "tax"]).astype(float).round(2).tolist()
    [[1.5, 1.12, 0.0]]

    (queries, texts) float32. The runs are of words between blanks, in lower case.
    """
    from consilience.stores.text import TextStore

    scores = np.zeros((len(queries), len(texts)), np.float32)
    with tempfile.TemporaryDirectory() as folder:
        store = TextStore.create(Path(folder) / "text", language="english")
        store.add(enumerate(texts))
        for row, found in zip(scores, store.search(queries, len(texts), np.ones(len(texts), bool)), strict=True):
            if len(found):
                row[found.numbers] = found.scores / found.scores[0]
    lowered = [f" {' '.join(text.lower().split())} " for text in texts]
    for row, query in zip(scores, queries, strict=True):
        words = query.lower().split()
        for place in np.flatnonzero(row):
            row[place] += _PHRASES * _longest_run(words, lowered[place]) / max(len(words), 1)
    return scores


def _longest_run(words: Sequence[str], text: str) -> int:
    best = 0
    for start in range(len(words)):
        while start + best < len(words) and f" {' '.join(words[start : start + best + 1])} " in text:
            best += 1
    return best


def ndcg_of_queries(
    model: LateInteractionEncoder, sample: EvaluationSet, *, how: Literal["tokens", "fixed", "mean"] = "tokens"
) -> NDArray[np.float64]:
    """Return nDCG@10 of every query, documents ranked by the model.

    how: "tokens" late interaction with the model's own query length; "fixed" with 32 tokens of each query, longer ones
    cut, shorter ones filled with mask tokens; "mean" the cosine of the means of the token vectors.
    """
    from consilience.models.token_vectors import max_similarity

    held = model.encode_documents(sample.documents)
    asked = model.encode_queries(sample.queries) if how != "fixed" else model.encode_tokens(_fixed(model, sample))
    places = range(len(sample.queries))
    if how == "mean":
        documents = np.stack([_mean(held.text(place)) for place in range(len(sample.documents))])
        scores = np.stack([_mean(asked.text(place)) for place in places]) @ documents.T
    else:
        scores = np.stack([max_similarity(asked.text(place), held) for place in places])
    return np.asarray(ndcg_at(scores, sample.qrels, k=10), np.float64)


def _fixed(model: LateInteractionEncoder, sample: EvaluationSet) -> Tokens:
    from consilience.models.batching import Tokens

    tokens = model.encoder.tokenise(sample.queries, prompt=model.settings.query_marker)
    mask = model.encoder.tokenizer.mask_token_id
    rows = [tokens.text(place).tolist() for place in range(len(tokens))]
    cut = [[*ids[: _FIXED - 1], ids[-1]] if len(ids) > _FIXED else ids + [mask] * (_FIXED - len(ids)) for ids in rows]
    types = None if tokens.types is None else [[0] * _FIXED for _ in cut]
    return Tokens.from_lists(cut, types, tokens.prompt)


def _mean(vectors: NDArray[np.float32]) -> NDArray[np.float32]:
    mean = vectors.mean(axis=0) if len(vectors) else np.zeros(vectors.shape[1], np.float32)
    return np.asarray(mean / max(float(np.linalg.norm(mean)), 1e-12), np.float32)
