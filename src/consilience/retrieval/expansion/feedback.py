"""Pseudo-relevance feedback: words of the first hits are searched for, too.

Use: short queries over texts that say the same in other words. Avoid: queries whose first hits are wrong; it drifts.

Source: Abdul-Jaleel et al. 2004, UMass at TREC 2004 (RM3).
"""

from __future__ import annotations

import math
from collections import Counter
from typing import TYPE_CHECKING

from consilience.errors import RequestError
from consilience.retrieval.expansion.protocol import Variation
from consilience.retrieval.weighting import TEXT
from consilience.stores.words import analyser, telling_words

if TYPE_CHECKING:
    from consilience.retrieval.index import Index

__all__ = ["RelevanceFeedback"]

_REPEATS = 10  # of the words of a query: a word's weight is how often it stands in the text that is searched for


class RelevanceFeedback:
    """Adds the most telling words of the first hits to a query, for the full text.

    >>> import tempfile
    >>> from consilience.data.documents import Document
    >>> from consilience.retrieval.index import Index
    >>> index = Index.create(tempfile.mkdtemp() + "/index")
    >>> texts = ["A puppy is a young dog.", "Dogs bark.", "Tax law."]
    >>> _ = index.add([Document(str(place), text) for place, text in enumerate(texts)])
    >>> [variation.text for variation in RelevanceFeedback(index, documents=1, words=1)("puppy")]
    ['puppi puppi puppi puppi puppi puppi puppi puppi puppi puppi dog dog dog dog dog dog dog dog dog dog']

    documents: hits that are read. words: that are added. weight: of the added words, 0 to 1, the query's has the rest.
    """

    def __init__(self, index: Index, *, documents: int = 5, words: int = 10, weight: float = 0.5) -> None:
        if documents < 1 or words < 1 or not 0 < weight < 1:
            raise RequestError(
                f"relevance feedback: documents {documents}, words {words}, weight {weight}; at least 1, 1, and a "
                "weight between 0 and 1"
            )
        self.index, self.documents, self.words, self.weight = index, documents, words, weight
        self._analyser = analyser(index.stores.language)

    def __call__(self, query: str) -> list[Variation]:
        """Return the query for all stores but the full text, and the query with more words for that."""
        language = self.index.stores.language
        own = telling_words(self._analyser.analyze(query), language)
        (found,) = self.index.stores.search_text([query], self.documents)
        if not own or not len(found):
            return [Variation(query)]
        held = self.index.stores.documents(found.numbers.tolist())
        total = float(found.scores.sum()) or 1.0
        weights: Counter[str] = Counter()
        for number, score in zip(found.numbers.tolist(), found.scores.tolist(), strict=True):
            words = Counter(telling_words(self._analyser.analyze(held[number].full_text), language))
            for word, times in words.items():
                weights[word] += score / total * times / sum(words.values())
        for word in own:
            weights.pop(word, None)
        added = sorted(weights, key=lambda word: (-weights[word], word))[: self.words]
        text = [word for word in own for _ in range(_REPEATS)]
        share = self.weight / (1 - self.weight) * len(own) * _REPEATS / max(sum(weights[word] for word in added), 1e-9)
        for word in added:
            text += [word] * min(max(math.floor(weights[word] * share + 0.5), 1), _REPEATS)
        others = tuple(name for name in self.index.spaces)
        return [Variation(" ".join(text), stores=(TEXT,)), *([Variation(query, stores=others)] if others else [])]
