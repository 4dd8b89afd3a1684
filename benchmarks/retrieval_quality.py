"""How well every way of searching finds, over the public retrieval sets: `python benchmarks/retrieval_quality.py`.

Of each set: all documents with an answer and others, 300 in all, up to 100 queries (test, else dev), documents in
pieces of 100 words, of which the first three count. Ways: BM25 by bm25s, one encoder, a merge of six experts of it, the
same experts in a bundle with a router, words and vectors together (the default Searcher), a reranker behind it, and
token vectors beside it. `--large` takes up to 2,000 documents and 200 queries, and of the ways those that need one
encoder. Results go to build/bench/retrieval_quality/SET.json, or retrieval_quality_large/SET.json (a run that was
stopped goes on); `python docs/generate.py` writes them into docs/retrieval-quality.md. `--smoke` takes a few of the
bundled documents and experts.
"""

from __future__ import annotations

import argparse
import json
import random
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from _experts import BASE, EXPERTS

from consilience.bench.routing import fit_domain_router
from consilience.bench.search_evaluation import HYBRID, Way, evaluate_ways
from consilience.bundles.creation import create_bundle
from consilience.data import Suite
from consilience.data.documents import Document
from consilience.data.ingestion.chunking import chunk
from consilience.data.reserved import default_data_folder
from consilience.data.retrieval import RetrievalData
from consilience.data.suite import Domain
from consilience.merging.recipe import Recipe
from consilience.retrieval.answer import Hit
from consilience.retrieval.index import Index
from consilience.retrieval.reranking.late_interaction import LateInteractionReranker
from consilience.retrieval.searcher import Searcher

ROOT = Path(__file__).parents[1]
BUNDLED = ROOT / "examples"
JUDGED = ("cisi", "medline", "electronics_npl", "health_liveqa", "qa_trecqa")  # by people
LATE = "late:" + BASE
CAPS, LARGE = (300, 100), (2000, 200)  # documents and queries of a set
TOKENS, WORDS, PIECES, RERANKED = 128, 100, 3, 20
METRICS = ("nDCG@10", "recall@2", "recall@10")


def main() -> None:
    """Measure every set that is not measured yet."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("sets", nargs="*", help="names of sets (default: all)")
    parser.add_argument("--folder", type=Path, default=ROOT / "build" / "bench")
    parser.add_argument("--large", action="store_true", help="2,000 documents and 200 queries, fewer ways")
    parser.add_argument("--smoke", action="store_true")
    options = parser.parse_args()
    data = default_data_folder()
    root, folder = data / "retrieval", options.folder / f"retrieval_quality{'_large' if options.large else ''}"
    experts = {name: data.parent / "experts" / place for name, place in EXPERTS.items()}
    if options.smoke:
        root, experts = BUNDLED / "data", {name: BUNDLED / "experts" / name for name in ("words", "python")}
    folder.mkdir(parents=True, exist_ok=True)
    names = options.sets or sorted(path.name for path in root.iterdir() if (path / "corpus.parquet").is_file())
    caps = (12, 4) if options.smoke else LARGE if options.large else CAPS
    encoders = {"minilm": BASE} if options.large else models(folder, root, experts, 8 if options.smoke else 300)
    for name in names:
        place = folder / f"{name}.json"
        if not place.is_file():
            result = measure(RetrievalData.open(root / name), encoders, caps, folder / "index")
            place.write_text(json.dumps({"judged by people": name in JUDGED, **result}, indent=1))
            print(name, json.dumps(result["ways"]), flush=True)


def models(folder: Path, root: Path, experts: dict[str, Path], taught_by: int) -> dict[str, str]:
    """Return the encoders: one, the merge, and the bundle whose router has seen training queries only."""
    merged, bundle = folder / "merged", folder / "bundle"
    if not merged.is_dir():
        given = {name: str(path) for name, path in experts.items()}
        Recipe(method="tsv", base=BASE, experts=given, parameters={"alpha": 0.7}).run(merged)
    if not bundle.is_dir():
        made = create_bundle(
            folder / "bundle.new", BASE, {n: str(p) for n, p in experts.items()}, residual="adapter", encodes="both"
        )
        taught = {
            path.name: RetrievalData.open(path)
            for path in sorted(root.iterdir())
            if (path / "corpus.parquet").is_file()
        }
        taught = {name: data for name, data in taught.items() if "train" in data.splits and "dev" in data.splits}
        suite = Suite("taught", {name: Domain(data) for name, data in taught.items()}, max_tokens=64, documents=100)
        made.set_router(fit_domain_router(made, suite, queries=taught_by))
        shutil.move(folder / "bundle.new", bundle)
    return {"minilm": BASE, "late": LATE, "merged": str(merged), "bundle": str(bundle)}


def drawn(data: RetrievalData, caps: tuple[int, int]) -> tuple[list[Document], dict[str, str], Any, str]:
    """Return the pieces of documents, the queries, the judgements, and the split."""
    split = "test" if "test" in data.splits else "dev"
    given, qrels = data.queries(split), data.qrels(split)
    asked = [(i, text) for i, text in zip(given.ids, given.texts, strict=True) if any(qrels.get(i, {}).values())]
    random.Random(0).shuffle(asked)
    texts = dict(zip(data.documents.ids, data.documents.texts, strict=True))
    kept: dict[str, None] = {}
    queries = {}
    for name, text in asked[: caps[1]]:
        answers = [d for d, label in qrels[name].items() if label > 0 and d in texts]
        if len(kept) + len(answers) <= caps[0]:
            kept |= dict.fromkeys(answers)
            queries[name] = text
    others = [name for name in texts if name not in kept]
    random.Random(1).shuffle(others)
    chosen = sorted([*kept, *others[: caps[0] - len(kept)]])
    pieces = [
        piece
        for name in chosen
        for piece in list(chunk(Document(name, texts[name]), "sentences", words=WORDS))[:PIECES]
    ]
    there = set(chosen)
    judged = {name: {d: label for d, label in qrels[name].items() if d in there} for name in queries}
    return pieces, queries, judged, split


def measure(data: RetrievalData, encoders: dict[str, str], caps: tuple[int, int], place: Path) -> dict[str, Any]:
    """Index one set and search it in every way."""
    pieces, queries, qrels, split = drawn(data, caps)
    shutil.rmtree(place, ignore_errors=True)
    with Index.create(place, encoders=encoders, max_tokens=TOKENS) as index:
        index.add(pieces)

        def searcher(*stores: str, **options: Any) -> Way:
            made = Searcher(index, stores=stores, **options)
            return lambda texts, k: made.search(texts, k)

        ways: dict[str, Way] = {"bm25s": bm25(pieces)}
        ways |= {name: searcher(name) for name in ("text", *encoders)}
        ways |= {
            HYBRID: searcher("text", "minilm"),
            "hybrid, equal weights": searcher("text", "minilm", weights={"text": 1.0, "minilm": 1.0}),
            "hybrid, rrf": searcher("text", "minilm", fusion="rrf"),
        }
        if "late" in encoders:
            late = LateInteractionReranker(BASE, max_tokens=TOKENS)
            ways |= {
                "hybrid, merged": searcher("text", "merged"),
                "hybrid, bundle": searcher("text", "bundle"),
                "hybrid + rerank": searcher("text", "minilm", rerank=late, rerank_depth=RERANKED),
                "hybrid + multi-vector": searcher("text", "minilm", "late"),
                "hybrid, bundle + multi-vector": searcher("text", "bundle", "late"),
            }
        found = evaluate_ways(ways, queries, qrels, reference="minilm", metrics=METRICS)
    summary = found.summary()
    values = {row.name: [round(float(value), 5) for value in row.values] for row in found.rows}
    facts = {"split": split, "documents": len({piece.parent or piece.id for piece in pieces}), "pieces": len(pieces)}
    return {**facts, **summary, "values": values}


def bm25(pieces: Sequence[Document]) -> Way:
    """Return BM25 by bm25s with its English stop words and the Snowball stemmer where it is installed."""
    import bm25s

    words = bm25s.BM25()

    def tokens(texts: Sequence[str]) -> Any:
        return bm25s.tokenize(list(texts), stopwords="en", show_progress=False)

    words.index(tokens([piece.full_text for piece in pieces]), show_progress=False)

    def way(texts: Sequence[str], k: int) -> list[list[Hit]]:
        found, scores = words.retrieve(tokens(texts), k=min(k, len(pieces)), show_progress=False)
        return [
            [Hit(pieces[n], float(s)) for n, s in zip(row, own, strict=True) if s > 0]
            for row, own in zip(found.tolist(), scores.tolist(), strict=True)
        ]

    return way


if __name__ == "__main__":
    main()
