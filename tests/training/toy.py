"""A toy language: a document is its query, word by word, in other words."""

from __future__ import annotations

import random

from consilience.data import RetrievalData

COUNTS = {"train": 120, "dev": 25, "test": 10}


def toy_data(*, seed: int = 0, counts: dict[str, int] | None = None) -> RetrievalData:
    """Queries of 3 words among w0-w39; the words of their documents are 100 higher."""
    draw = random.Random(seed)
    documents, queries, judgements = {}, {}, []
    seen = set()
    for split, count in (counts or COUNTS).items():
        for number in range(count):
            words = tuple(draw.sample(range(40), 3))
            while words in seen:
                words = tuple(draw.sample(range(40), 3))
            seen.add(words)
            name = f"{split}{number}"
            queries[name] = (" ".join(f"w{word}" for word in words), split)
            documents[f"d-{name}"] = " ".join(f"w{word + 100}" for word in words)
            judgements.append((name, f"d-{name}", 1.0))
    return RetrievalData.of("toy", documents=documents, queries=queries, judgements=judgements)
