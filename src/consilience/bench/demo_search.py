"""The end of the demonstration: the demo's documents in one index, searched by the merged model and by the Searcher."""

from __future__ import annotations

import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from consilience.bench.search_evaluation import HYBRID, SearchEvaluation, evaluate_index
from consilience.core.jobs import MANIFEST
from consilience.core.progress import Progress
from consilience.data.documents import Document
from consilience.data.sampling import EvaluationSet
from consilience.errors import RequestError
from consilience.retrieval.answer import Hit
from consilience.retrieval.index import Index
from consilience.retrieval.searcher import Searcher

__all__ = ["MERGED", "DemoSearch", "search_demo"]

MERGED = "merged"
_SHOWN = 3  # queries, each of another domain
_HITS = 2


@dataclass(frozen=True)
class DemoSearch:
    """Some queries with their best hits by the merged model alone and by the Searcher, and both measured on all.

    shown: query -> way ("merged" or "hybrid") -> hits; relevant: query -> ids of its documents.
    """

    index: Path
    encoder: str
    documents: int
    evaluation: SearchEvaluation
    shown: Mapping[str, Mapping[str, list[Hit]]]
    relevant: Mapping[str, frozenset[str]]

    def rows(self) -> list[tuple[str, str, str]]:
        """Return the shown hits side by side: the query, then rank by rank both ways; "*" marks relevant ones."""
        found = []
        for query, ways in self.shown.items():
            for place in range(_HITS):
                cells = [self._cell(query, hits[place] if place < len(hits) else None) for hits in ways.values()]
                found.append((query if place == 0 else "", cells[0], cells[1]))
        return found

    def _cell(self, query: str, hit: Hit | None) -> str:
        if hit is None:
            return ""
        mark = "* " if hit.id in self.relevant[query] else "  "
        return mark + " ".join(hit.document.full_text.split())[:60]

    def summary(self) -> dict[str, Any]:
        """Return the measurement as plain data."""
        return {"index": str(self.index), "documents": self.documents, **self.evaluation.summary()}


def search_demo(
    sets: Mapping[str, EvaluationSet], encoder: str, out: Path, *, max_tokens: int | None, progress: bool | None = None
) -> DemoSearch:
    """Index the documents of all domains together with an encoder, search and measure.

    An index that is there is brought up to date. Raises what `Index` raises.
    """
    texts: dict[str, str] = {}
    queries: dict[str, str] = {}
    qrels: dict[str, dict[str, float]] = {}
    for name, one in sets.items():
        ids = [f"{name}/{i}" for i in one.document_ids]
        texts |= zip(ids, one.documents, strict=True)
        asked = [f"{name}/{i}" for i in one.query_ids]
        queries |= zip(asked, one.queries, strict=True)
        judged = [{ids[place]: score for place, score in own.items()} for own in one.qrels]
        qrels |= zip(asked, judged, strict=True)
    with _opened(out, encoder, max_tokens) as index:
        documents = [Document(i, text, fields={"domain": i.split("/")[0]}) for i, text in texts.items()]
        gone = [i for i in index.stores.all_ids() if i not in texts]
        if gone:
            index.delete(gone)
        with Progress(len(documents), "documents", "indexing", enabled=progress) as bar:
            index.upsert(documents, progress=bar)
        evaluation = evaluate_index(index, queries, qrels, reference=MERGED, metrics=("nDCG@10", "recall@10"))
        chosen = [next(i for i in queries if i.startswith(f"{name}/")) for name in list(sets)[:_SHOWN]]
        some = [queries[i] for i in chosen]
        searchers = {MERGED: Searcher(index, stores=[MERGED]), HYBRID: Searcher(index)}
        ways = {name: searcher.search(some, _HITS) for name, searcher in searchers.items()}
    shown = {query: {name: hits[place] for name, hits in ways.items()} for place, query in enumerate(some)}
    relevant = {queries[i]: frozenset(d for d, score in qrels[i].items() if score > 0) for i in chosen}
    return DemoSearch(out, encoder, len(texts), evaluation, shown, relevant)


def _opened(out: Path, encoder: str, max_tokens: int | None) -> Index:
    """Open the demo's index where its vectors are this encoder's, else make it."""
    if (out / MANIFEST).is_file():
        index = Index.open(out, write=True, encoders={MERGED: encoder})
        try:
            index.space(MERGED)
            return index
        except RequestError:  # of another encoder: made again
            index.close()
    shutil.rmtree(out, ignore_errors=True)
    return Index.create(out, encoders={MERGED: encoder}, max_tokens=max_tokens)
