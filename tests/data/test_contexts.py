"""Questions with passages in the JSON of DPR and Rankify: read and written without loss."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from consilience.data.contexts import Context, Question, read_questions, write_questions
from consilience.errors import DataError

ROW = {
    "question": "who painted it",
    "answers": ["Goya", "Francisco Goya"],
    "query_id": 12,
    "ctxs": [
        {"id": "wiki:7", "title": "Saturn", "text": "A painting by Goya.", "score": "82.1", "has_answer": True},
        {"id": 9, "title": "", "text": "Другой.", "score": 0.5, "has_answer": False, "rank": 2},
        {"id": 10, "score": None},
    ],
}


def test_a_file_is_written_as_it_was_read(tmp_path: Path) -> None:
    (tmp_path / "a.json").write_text(json.dumps([ROW]))
    write_questions(read_questions(tmp_path / "a.json"), tmp_path / "b.json")
    assert json.loads((tmp_path / "b.json").read_text()) == [ROW]
    assert len(read_questions(tmp_path / "a.json", contexts=1)[0].contexts) == 1


def test_lines_and_what_rankify_writes_are_read(tmp_path: Path) -> None:
    written = {"question": "q?", "answers": "Paris", "contexts": [{"id": 1, "score": 1.0, "has_answer": None}]}
    (tmp_path / "a.jsonl").write_text(json.dumps(written) + "\n\n" + json.dumps({"question": "r"}) + "\n")
    found = read_questions(tmp_path / "a.jsonl")
    assert found[0].answers == ("Paris",) and found[0].contexts[0].id == 1 and found[1] == Question("r")


@given(st.lists(st.fixed_dictionaries({
    "question": st.text(), "answers": st.lists(st.text()),
    "ctxs": st.lists(st.fixed_dictionaries({}, optional={
        "id": st.one_of(st.none(), st.integers(), st.text()), "text": st.one_of(st.none(), st.text()),
        "score": st.one_of(st.none(), st.floats(allow_nan=False)), "other": st.integers(),
    })),
})))  # fmt: skip
def test_any_rows_survive(tmp_path_factory: pytest.TempPathFactory, rows: list[dict[str, object]]) -> None:
    place = tmp_path_factory.mktemp("rows")
    (place / "a.json").write_text(json.dumps(rows))
    write_questions(read_questions(place / "a.json"), place / "b.json")
    assert json.loads((place / "b.json").read_text()) == rows


def test_all_that_is_wrong_is_said(tmp_path: Path) -> None:
    bad = [{"answers": []}, {"question": "q", "answers": [{}]}, {"question": "q", "ctxs": ["a"]}, ROW]
    (tmp_path / "a.json").write_text(json.dumps(bad))
    with pytest.raises(DataError, match=r"(?s)question 1.*question 2.*question 3"):
        read_questions(tmp_path / "a.json")
    (tmp_path / "b.json").write_text("[{")
    with pytest.raises(DataError, match="neither"):
        read_questions(tmp_path / "b.json")
    with pytest.raises(DataError, match="cannot be read"):
        read_questions(tmp_path / "none.json")


def test_answers_are_looked_up_as_whole_words_in_any_script() -> None:
    contexts = (Context(text="It is in PARIS!"), Context(text="parisian"), Context(title="Париж"))
    found = Question("where", ("paris", "париж"), contexts).with_answers_looked_up()
    assert [one.has_answer for one in found.contexts] == [True, False, True]
