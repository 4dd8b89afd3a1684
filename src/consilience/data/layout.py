"""Read the three parquet files of a retrieval dataset and report everything that is wrong with them at once."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from consilience.errors import DataError, MissingExtraError, Problems, did_you_mean

__all__ = ["SPLITS", "Judgement", "Tables", "read_tables"]

SPLITS = ("train", "dev", "test")

_COLUMNS = {
    "corpus": ("_id", "title", "text"),
    "queries": ("_id", "text", "split"),
    "qrels": ("query_id", "corpus_id", "score", "split"),
}


@dataclass(frozen=True)
class Judgement:
    """One judged document of one query; a score of 0 means judged not relevant."""

    query_id: str
    document_id: str
    score: float


@dataclass(frozen=True)
class Tables:
    """The checked content of a dataset folder."""

    document_ids: tuple[str, ...]
    document_texts: tuple[str, ...]
    query_ids: tuple[str, ...]
    query_texts: tuple[str, ...]
    query_splits: tuple[str, ...]
    judgements: tuple[Judgement, ...]
    notes: tuple[str, ...]


Columns = dict[str, list[Any]]


def read_tables(folder: Path) -> Tables:
    """Read and check `corpus.parquet`, `queries.parquet` and `qrels.parquet`.

    Raises DataError with every problem: missing files or columns, empty tables, missing or repeated ids, missing
    texts, unknown splits, scores that are no whole numbers, judgements of another split than their query's.
    Judgements that name unknown queries or documents are left out and counted in `notes`.
    """
    problems = Problems()
    if not folder.is_dir():
        raise DataError(f"dataset {folder}: no such folder; expected one with {_file_list()}")
    raw = {name: _read(folder / f"{name}.parquet", columns, problems) for name, columns in _COLUMNS.items()}
    corpus, queries, qrels = raw["corpus"], raw["queries"], raw["qrels"]
    if corpus is not None:
        _check_rows("corpus.parquet", corpus["_id"], corpus["text"], problems)
    if queries is not None:
        _check_rows("queries.parquet", queries["_id"], queries["text"], problems)
        _check_splits("queries.parquet", queries["split"], problems)
    if qrels is not None:
        _check_splits("qrels.parquet", qrels["split"], problems)
        _check_scores(qrels["score"], problems)
    if problems or corpus is None or queries is None or qrels is None:
        problems.raise_if_any(DataError, f"dataset {folder}")
        raise AssertionError("a table without a problem was not read")
    split_of = dict(zip(queries["_id"], queries["split"], strict=True))
    judgements, notes = _judgements(qrels, split_of, set(corpus["_id"]), problems)
    problems.raise_if_any(DataError, f"dataset {folder}")
    titles = (title or "" for title in corpus["title"])
    texts = tuple(f"{title} {text}" if title else text for title, text in zip(titles, corpus["text"], strict=True))
    return Tables(
        tuple(corpus["_id"]),
        texts,
        tuple(queries["_id"]),
        tuple(queries["text"]),
        tuple(queries["split"]),
        judgements,
        notes,
    )


def _file_list() -> str:
    return ", ".join(f"{name}.parquet ({', '.join(columns)})" for name, columns in _COLUMNS.items())


def _read(path: Path, columns: Sequence[str], problems: Problems) -> Columns | None:
    try:
        import pyarrow
        from pyarrow import parquet
    except ImportError:
        raise MissingExtraError("pyarrow", "bench") from None
    if not path.is_file():
        problems.add(f"{path.name}: no such file; expected the columns {', '.join(columns)}")
        return None
    try:
        found = parquet.read_schema(path).names
        missing = [column for column in columns if column not in found]
        if missing:
            problems.add(f"{path.name}: no column {', '.join(missing)}; found {', '.join(found)}")
            return None
        table = parquet.read_table(path, columns=list(columns))
    except (pyarrow.ArrowException, OSError) as error:
        problems.add(f"{path.name}: not a readable parquet file ({str(error).splitlines()[0]})")
        return None
    if table.num_rows == 0:
        problems.add(f"{path.name}: has no rows")
        return None
    content: Columns = {column: table.column(column).to_pylist() for column in columns}
    for column in columns:
        if column != "score":
            content[column] = [value if value is None else str(value) for value in content[column]]
    return content


def _some(values: Iterable[str], *, most: int = 3) -> str:
    shown = list(values)
    more = f" and {len(shown) - most} more" if len(shown) > most else ""
    return ", ".join(repr(value) for value in shown[:most]) + more


def _check_rows(file: str, ids: Sequence[str | None], texts: Sequence[str | None], problems: Problems) -> None:
    if missing := sum(1 for value in ids if not value):
        problems.add(f"{file}: {missing} of {len(ids)} rows have no _id")
    if repeated := [value for value, count in Counter(ids).items() if value and count > 1]:
        problems.add(f"{file}: {len(repeated)} repeated _id: {_some(repeated)}; every row needs its own")
    if empty := [str(key) for key, text in zip(ids, texts, strict=True) if text is None]:
        problems.add(f"{file}: {len(empty)} rows have no text: {_some(empty)}")


def _check_splits(file: str, splits: Sequence[str | None], problems: Problems) -> None:
    for split, count in Counter(splits).items():
        if split not in SPLITS:
            hint = did_you_mean(str(split), SPLITS)
            problems.add(f"{file}: {count} rows of the unknown split {split!r}{hint}")


def _check_scores(scores: Sequence[Any], problems: Problems) -> None:
    bad = [score for score in scores if not isinstance(score, int | float) or score != score // 1]
    if bad:
        problems.add(f"qrels.parquet: {len(bad)} scores are not whole numbers: {_some(map(str, bad))}")


def _judgements(
    qrels: Columns, split_of: dict[str, str], documents: set[str], problems: Problems
) -> tuple[tuple[Judgement, ...], tuple[str, ...]]:
    kept: dict[tuple[str, str], Judgement] = {}
    no_query, no_document = Counter[str](), Counter[str]()
    conflicts, moved = list[str](), list[str]()
    for query, document, score, split in zip(*(qrels[name] for name in _COLUMNS["qrels"]), strict=True):
        if query not in split_of:
            no_query[str(query)] += 1
        elif document not in documents:
            no_document[str(document)] += 1
        elif split_of[query] != split:
            moved.append(query)
        else:
            judgement = Judgement(query, document, float(score))
            if kept.setdefault((query, document), judgement).score != judgement.score:
                conflicts.append(f"{query} / {document}")
    if moved:
        problems.add(
            f"qrels.parquet: {len(moved)} judgements carry another split than their query: {_some(moved)}; "
            "a query belongs to one split"
        )
    if conflicts:
        problems.add(
            f"qrels.parquet: {len(conflicts)} pairs are judged twice with different scores: {_some(conflicts)}"
        )
    notes = [
        f"{sum(unknown.values())} judgements name {len(unknown)} unknown {kind}, left out: {_some(unknown)}"
        for unknown, kind in ((no_query, "queries"), (no_document, "documents"))
        if unknown
    ]
    if not kept and not moved:
        problems.add("qrels.parquet: no judgement names a known query and a known document; " + "; ".join(notes))
    return tuple(kept.values()), tuple(notes)
