"""`consilience index` and `consilience search`."""

from __future__ import annotations

from enum import Enum
from typing import Annotated, Any

import typer

from consilience.cli.arguments import named_values
from consilience.cli.output import note, show_json, show_table
from consilience.errors import Problems, RequestError

_SHOWN = 20  # failures and notices that are printed
_WIDTH = 100  # characters of a text in the list of hits


class Chunks(Enum):
    """How documents are cut."""

    structure = "structure"
    sentences = "sentences"
    fixed = "fixed"
    none = "none"


def index(
    path: Annotated[
        str,
        typer.Argument(
            help="File or folder: txt, md, html, pdf, jsonl, csv, parquet, sqlite; or the tables of a database: "
            "sqlite:///FILE?table=NAME, postgresql://… (by SQLAlchemy)."
        ),
    ],
    out: Annotated[str, typer.Option("--out", "-o", help="Folder of the index, or postgresql://…?index=NAME.")],
    encoder: Annotated[
        list[str] | None,
        typer.Option(
            help="NAME=MODEL, a space of vectors; late:MODEL for those of tokens, sparse:FOLDER for terms (repeatable; "
            "default: all-MiniLM-L6-v2 where installed)."
        ),
    ] = None,
    words_only: Annotated[bool, typer.Option("--words-only", help="No vectors.")] = False,
    language: Annotated[str, typer.Option(help="Of the stemmer; none: words as they are.")] = "english",
    chunks: Annotated[Chunks, typer.Option(help="How documents are cut into pieces.")] = Chunks.structure,
    words: Annotated[int, typer.Option(min=1, help="At most so many words a piece.")] = 200,
    max_tokens: Annotated[int | None, typer.Option(min=8, help="Tokens of a piece that are encoded.")] = None,
    copies: Annotated[bool, typer.Option("--copies", help="Keep documents that are copies of others.")] = False,
    near_duplicates: Annotated[
        float | None, typer.Option(help="Leave out what is so similar (0 to 1) to an earlier document.")
    ] = None,
    edges: Annotated[
        str, typer.Option(help="Relations for the graph, of: links,tables,rules (rules are for English text).")
    ] = "",
    prune: Annotated[bool, typer.Option("--prune", help="Delete documents that the files no longer hold.")] = False,
    approximate: Annotated[
        str | None, typer.Option(help="Index of the vectors: hnsw, ivfflat, ivfpq, none (default: as it is).")
    ] = None,
    device: Annotated[str | None, typer.Option(help="cpu, cuda, ... (default: the best there is).")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print the report as JSON.")] = False,
) -> None:
    """Bring an index up to date with a file or folder; what has not changed is left alone."""
    from consilience.retrieval.indexing import index_files
    from consilience.stores.open import shown_place

    problems = Problems()
    encoders = named_values("--encoder", encoder, problems) if encoder else {} if words_only else None
    if words_only and encoder:
        problems.add("--words-only and --encoder: choose one")
    problems.raise_if_any(RequestError, "index")
    done = index_files(
        path,
        out,
        encoders=encoders,
        language=None if language == "none" else language,
        chunks=chunks.value,
        words=words,
        max_tokens=max_tokens,
        copies=copies,
        near_duplicates=near_duplicates,
        edges=[name.strip() for name in edges.split(",") if name.strip()],
        prune=prune,
        approximate=approximate,
        device=device,
        progress=False if as_json else None,
    )
    if as_json:
        show_json(done.summary())
        return
    counts, report = done.reading.counts, done.report
    show_table(done.reading.shown, ("read", ""), [(what, count) for what, count in counts.items()], right=(1,))
    rows = [(what, count) for what, count in vars(report).items()]
    if done.edges:
        rows.append(("edges", done.edges))
    shown = [(what, str(count)) for what, count in rows]
    shown += [(f"recall of {approximate} in {space}", f"{recall:.3f}") for space, recall in done.recall.items()]
    show_table(shown_place(out), ("pieces", str(done.pieces)), shown, right=(1,))
    for one in done.reading.failures[:_SHOWN]:
        note(f"failed: {one.item}: {one.error}")
    for text in [*done.notices, *(f"{one.item}: {one.text}" for one in done.reading.notices)][:_SHOWN]:
        note(f"note: {text}")
    if len(done.reading.failures) + len(done.reading.notices) > _SHOWN:
        note("more with --json")


def search(
    folder: Annotated[str, typer.Argument(metavar="INDEX", help="Folder of the index, or postgresql://…?index=NAME.")],
    query: Annotated[list[str], typer.Argument(help="One or more queries.")],
    k: Annotated[int, typer.Option("-k", min=1, help="Hits of a query.")] = 10,
    where: Annotated[str | None, typer.Option(help="Filter, such as \"year >= 2020 and lang = 'en'\".")] = None,
    store: Annotated[list[str] | None, typer.Option(help="text, graph, or a space (repeatable; default: all).")] = None,
    fusion: Annotated[str, typer.Option(help="How rankings become one.")] = "weighted",
    weight: Annotated[
        list[str] | None, typer.Option(help="STORE=NUMBER (repeatable; default: chosen for every query).")
    ] = None,
    rerank: Annotated[
        str | None, typer.Option(help="KIND:MODEL that puts the best hits in order, such as late:MODEL.")
    ] = None,
    rerank_depth: Annotated[int, typer.Option(min=1, help="Hits that are reranked.")] = 20,
    route: Annotated[
        bool, typer.Option("--route", help="Rows and quoted phrases too; rules say which stores a query is for.")
    ] = False,
    explain: Annotated[bool, typer.Option("--explain", help="Print weights of the stores, and times.")] = False,
    device: Annotated[str | None, typer.Option(help="cpu, cuda, ... (default: the best there is).")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print the answers as JSON, with their documents.")] = False,
) -> None:
    """Search an index; every hit says which stores found it, at which rank."""
    from consilience.retrieval.index import Index
    from consilience.retrieval.relational import Rows
    from consilience.retrieval.reranking import open_reranker
    from consilience.retrieval.routing import routed
    from consilience.retrieval.searcher import Searcher

    problems = Problems()
    weights = {}
    for name, text in named_values("--weight", weight or [], problems).items():
        try:
            weights[name] = float(text)
        except ValueError:
            problems.add(f"--weight {name}={text}: a number is expected")
    if route and (weights or fusion != "weighted"):
        problems.add("--route chooses the weights of the fusion; leave --weight and --fusion out")
    problems.raise_if_any(RequestError, "search")
    with Index.open(folder, device=device) as opened:
        reranker = None if rerank is None else open_reranker(rerank)
        options: dict[str, Any] = {"stores": store or None, "rerank": reranker, "rerank_depth": rerank_depth}
        if route:
            searcher = routed(opened, **options)
        else:
            searcher = Searcher(opened, fusion=fusion, weights=weights or None, **options)
        answers = searcher.answer(query, k, where=where)
        if as_json:
            show_json([answer.to_dict() for answer in answers])
            return
        for answer in answers:
            rows = [
                (
                    rank,
                    f"{hit.score:.3f}",
                    hit.id,
                    ", ".join(f"{name} {one.rank}" for name, one in hit.found.items()),
                    " ".join(hit.document.full_text.split())[:_WIDTH],
                )
                for rank, hit in enumerate(answer.hits, 1)
            ]
            show_table(answer.query, ("", "score", "id", "found by", "text"), rows, right=(0, 1))
            numbers = searcher.more.get("rows")
            if isinstance(numbers, Rows) and (asked := numbers.understand(answer.query)) and asked.query.what != "rows":
                note(numbers.answer(asked.query, where=where).as_text())
            if explain and answer.route is not None:
                why = ", ".join(answer.route.why)
                note(f"route: {answer.route.kind}" + (f" ({why})" if why else ""))
            if explain:
                note("weights: " + ", ".join(f"{name} {weight:.2f}" for name, weight in answer.weights.items()))
                note("ms: " + ", ".join(f"{name} {1000 * one:.1f}" for name, one in answer.seconds.items()))
            for name, why in answer.failed.items():
                note(f"without {name}: {why}")
            if not rows:
                note("nothing was found")
