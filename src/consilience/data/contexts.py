"""Questions with the passages found for them, in the JSON that DPR and Rankify read and write."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from consilience.core.atomic import write_text_atomic
from consilience.data.answer_metrics import has_answer
from consilience.errors import DataError, Problems

__all__ = ["Context", "Question", "read_questions", "write_questions"]

_OF_CONTEXT = ("id", "title", "text", "score", "has_answer")
_CONTEXTS = ("ctxs", "contexts")  # Rankify reads the first and writes the second


@dataclass(frozen=True)
class Context:
    """A passage found for a question.

    id, score: as the file has them, whole numbers and texts among them. has_answer: None where nobody looked. other:
    what else the file says of it.
    """

    id: str | int | None = None
    title: str | None = None
    text: str | None = None
    score: float | str | None = None
    has_answer: bool | None = None
    other: Mapping[str, Any] = field(default_factory=dict)

    @property
    def full_text(self) -> str:
        """The title and the text."""
        return " ".join(one for one in (self.title, self.text) if one)


@dataclass(frozen=True)
class Question:
    """A question, its right answers, the passages found for it (best first), and what was answered.

    >>> found = Question("Where is the Louvre?", ("Paris",), (Context(1, "Louvre", "A museum in Paris."), Context(2)))
    >>> [context.has_answer for context in found.with_answers_looked_up().contexts]
    [True, False]

    other: what else the file says of it.
    """

    text: str
    answers: tuple[str, ...] = ()
    contexts: tuple[Context, ...] = ()
    predicted: str | None = None
    other: Mapping[str, Any] = field(default_factory=dict)

    def with_answers_looked_up(self) -> Question:
        """Return the question whose contexts say whether they have an answer: as whole words, once normalised."""
        contexts = tuple(replace(one, has_answer=has_answer(one.full_text, self.answers)) for one in self.contexts)
        return replace(self, contexts=contexts)


def read_questions(path: str | Path, *, contexts: int | None = None) -> list[Question]:
    """Read a JSON list, or JSON lines, of questions with answers and contexts.

    >>> import tempfile
    >>> place = Path(tempfile.mkdtemp()) / "nq.json"
    >>> row = {"question": "Where?", "answers": ["Paris"], "ctxs": [{"id": 7, "text": "Paris.", "score": "82.1"}]}
    >>> _ = place.write_text(json.dumps([row]))
    >>> read_questions(place)[0].contexts[0].score
    '82.1'

    contexts: how many of each question are kept, by default all. Nothing is changed: a question gets no mark, a score
    stays a text where it is one, unknown keys are kept. Raises DataError that names every row that is none. Source:
    the files of facebookresearch/DPR and DataScienceUIBK/Rankify.
    """
    place = Path(path)
    try:
        content = place.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f"{place}: cannot be read ({error})") from error
    problems = Problems()
    found = []
    for number, row in enumerate(_rows(place, content), 1):
        try:
            found.append(_question(row, contexts))
        except DataError as error:
            problems.add(f"question {number}: {error}")
    problems.raise_if_any(DataError, str(place))
    return found


def write_questions(questions: Iterable[Question], path: str | Path) -> None:
    """Write questions as the JSON list that DPR and Rankify read; what nobody knows or said is left out."""
    rows = [_row(question) for question in questions]
    write_text_atomic(Path(path), json.dumps(rows, ensure_ascii=False, indent=1) + "\n")


def _rows(place: Path, content: str) -> Sequence[Any]:
    try:
        if content.lstrip().startswith("["):
            rows: Sequence[Any] = json.loads(content)
            return rows
        return [json.loads(line) for line in content.splitlines() if line.strip()]
    except json.JSONDecodeError as error:
        raise DataError(f"{place}: neither a JSON list nor JSON lines ({error})") from error


def _question(row: Any, contexts: int | None) -> Question:
    if not isinstance(row, dict) or not isinstance(row.get("question"), str):
        raise DataError('no text under "question"')
    answers = row.get("answers", [])
    answers = answers if isinstance(answers, list) else [answers]
    if not all(isinstance(one, str | int | float) for one in answers):
        raise DataError('"answers" is a list of texts')
    named = [key for key in _CONTEXTS if key in row]
    passages = row[named[0]] if named else []
    if not isinstance(passages, list) or not all(isinstance(one, dict) for one in passages):
        raise DataError(f'"{named[0]}" is a list of objects')
    other = {key: value for key, value in row.items() if key not in ("question", "answers", "predicted", *named[:1])}
    return Question(
        row["question"],
        tuple(map(str, answers)),
        tuple(_context(one) for one in passages[:contexts]),
        row.get("predicted"),
        other,
    )


def _context(row: Mapping[str, Any]) -> Context:
    other = {key: value for key, value in row.items() if key not in _OF_CONTEXT or value is None}
    return Context(**{key: row[key] for key in _OF_CONTEXT if key in row}, other=other)


def _row(question: Question) -> dict[str, Any]:
    passages = [
        dict(one.other) | {key: getattr(one, key) for key in _OF_CONTEXT if getattr(one, key) is not None}
        for one in question.contexts
    ]
    found: dict[str, Any] = {"question": question.text, "answers": list(question.answers)}
    if question.predicted is not None:
        found["predicted"] = question.predicted
    return found | dict(question.other) | {"ctxs": passages}
