"""Runs and judgements as plain mappings and TREC files, passages brought to their documents, and all measures of a run.

Source of the protocol for passages: CRUMB 2025, Benchmarking Information Retrieval Models on Complex Retrieval Tasks.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Mapping
from pathlib import Path

from consilience.core.atomic import write_text_atomic
from consilience.errors import DataError, MissingExtraError, Problems

__all__ = ["BINARY", "GRADED", "best_passages", "measure_run", "read_qrels", "read_run", "write_qrels", "write_run"]

Run = Mapping[str, Mapping[str, float]]
"""Query -> document -> score."""

GRADED = ("nDCG@10", "nDCG@5")
BINARY = ("P@5", "P@10", "R@10", "R@100", "R@1000", "RR", "RR@10")


def best_passages(run: Run) -> dict[str, dict[str, float]]:
    """Return a run over passages as one over documents: of every document its best passage.

    >>> best_passages({"q": {"a:1": 0.3, "b:0": 0.2, "a:0": 0.9}})
    {'q': {'a': 0.9, 'b': 0.2}}

    A passage's document is what stands before the first colon of its id; an id without one is its own document. Best
    first; of equal scores the passage that comes first in the run.
    """
    found = {}
    for query, scores in run.items():
        own: dict[str, float] = {}
        for passage, score in sorted(scores.items(), key=lambda item: -item[1]):
            own.setdefault(passage.partition(":")[0], score)
        found[query] = own
    return found


def measure_run(
    run: Run,
    qrels: Run,
    *,
    binary_qrels: Run | None = None,
    graded: tuple[str, ...] = GRADED,
    binary: tuple[str, ...] = BINARY,
) -> dict[str, float]:
    """Return the means of all measures over all judged queries, by trec_eval.

    >>> measure_run({"q": {"a": 0.9, "b": 0.2}}, {"q": {"b": 1}}, binary=("RR",))
    {'nDCG@10': 0.6309297535714575, 'nDCG@5': 0.6309297535714575, 'RR': 0.5}

    Graded measures use the labels as whole numbers (a warning says where one below 1 becomes 0), linear gain and the
    binary logarithm; binary measures `binary_qrels`, or labels above 0. Queries that are judged and not in the run
    count 0, also those without a relevant document; queries of the run that nobody judged are left out, with a warning.
    Raises DataError for scores that are not finite.
    """
    try:
        import ir_measures
    except ImportError:
        raise MissingExtraError("ir_measures", "bench") from None
    problems = Problems()
    for query, scores in run.items():
        problems.extend(
            f"run, query {query!r}: the score of {d!r} is {s}" for d, s in scores.items() if not math.isfinite(s)
        )
    problems.raise_if_any(DataError, "run")
    if extra := [query for query in run if query not in qrels]:
        warnings.warn(
            f"{len(extra)} queries of the run are not judged and left out, such as {extra[0]!r}", stacklevel=2
        )
    lost = sum(0 < label < 1 for labels in qrels.values() for label in labels.values())
    if lost and graded:
        warnings.warn(f"{lost} labels between 0 and 1 count as 0 in {', '.join(graded)}", stacklevel=2)
    whole = {query: {d: int(label) for d, label in labels.items()} for query, labels in qrels.items()}
    if binary_qrels is None:
        yes = {query: {d: int(label > 0) for d, label in labels.items()} for query, labels in qrels.items()}
    else:
        yes = {query: {d: int(label) for d, label in labels.items()} for query, labels in binary_qrels.items()}
    plain = {query: dict(scores) for query, scores in run.items() if query in qrels}
    found: dict[str, float] = {}
    for names, labels in ((graded, whole), (binary, yes)):
        if names:
            measures = {name: ir_measures.parse_measure(name) for name in names}
            values = ir_measures.calc_aggregate(list(measures.values()), labels, plain)
            found |= {name: float(values[measure]) for name, measure in measures.items()}
    return found


def read_run(path: str | Path) -> dict[str, dict[str, float]]:
    """Read a TREC run: query, Q0, document, rank, score, name. Raises DataError naming lines that are none."""
    return _read(Path(path), 6, 2, 4)


def read_qrels(path: str | Path) -> dict[str, dict[str, float]]:
    """Read TREC judgements: query, 0, document, label. Raises DataError naming lines that are none."""
    return _read(Path(path), 4, 2, 3)


def _read(path: Path, columns: int, document: int, value: int) -> dict[str, dict[str, float]]:
    found: dict[str, dict[str, float]] = {}
    problems = Problems()
    try:
        text = path.read_text()
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f"{path}: {error}") from error
    for number, line in enumerate(text.splitlines(), 1):
        parts = line.split()
        if not parts:
            continue
        try:
            if len(parts) != columns:
                raise ValueError(f"{len(parts)} columns, {columns} are expected")
            own = found.setdefault(parts[0], {})
            if parts[document] in own:
                raise ValueError(f"document {parts[document]!r} stands twice for query {parts[0]!r}")
            own[parts[document]] = float(parts[value])
        except ValueError as error:
            problems.add(f"line {number}: {error}")
    problems.raise_if_any(DataError, str(path))
    return found


def write_run(run: Run, path: str | Path, *, name: str = "consilience") -> None:
    """Write a TREC run, best first. Raises DataError for ids with blanks, which the format cannot hold."""
    lines = []
    for query, scores in run.items():
        ranked = sorted(scores.items(), key=lambda item: -item[1])
        lines += [f"{query} Q0 {document} {rank} {score!r} {name}" for rank, (document, score) in enumerate(ranked, 1)]
    _write(run, Path(path), lines)


def write_qrels(qrels: Run, path: str | Path) -> None:
    """Write TREC judgements. Raises DataError for ids with blanks, which the format cannot hold."""
    _write(
        qrels,
        Path(path),
        [f"{query} 0 {d} {label:g}" for query, labels in qrels.items() for d, label in labels.items()],
    )


def _write(held: Run, path: Path, lines: list[str]) -> None:
    wrong = [name for query, own in held.items() for name in (query, *own) if name.split() != [name]]
    if wrong:
        raise DataError(
            f"{path}: {len(wrong)} ids hold blanks or are empty, such as {wrong[0]!r}; TREC files cannot hold them"
        )
    write_text_atomic(path, "".join(f"{line}\n" for line in lines))
