"""The queue: batches, limits, and that no request pays for another's."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from consilience.errors import RequestError
from consilience.retrieval.index import Index
from consilience.retrieval.searcher import Searcher
from consilience.serving.searching import Busy, Searches, Wanted
from consilience.stores.where import parse_where


@pytest.fixture
def index(folder: Path) -> Iterator[Index]:
    with Index.open(folder) as opened:
        yield opened


class Gate:
    """Holds the first call of the Searcher until it is opened."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.entered, self.opened, real = threading.Event(), threading.Event(), Searcher.answer

        def answer(searcher: Searcher, queries: list[str], *arguments: Any, **options: Any) -> Any:
            self.entered.set()
            assert self.opened.wait(30)
            if "broken" in queries:
                raise RequestError("broken")
            return real(searcher, queries, *arguments, **options)

        monkeypatch.setattr(Searcher, "answer", answer)


def test_those_that_wait_are_searched_together(index: Index, monkeypatch: pytest.MonkeyPatch) -> None:
    gate, calls = Gate(monkeypatch), []
    searches = Searches(index, together=4, searched=calls.append)
    first = searches.submit(Wanted(), ["dogs"])
    assert gate.entered.wait(30)
    same = [searches.submit(Wanted(), [text]) for text in ("dog", "ports", "sort")]
    other = searches.submit(Wanted(where=parse_where("year = 2021")), ["list"])
    cut = searches.submit(Wanted(k=1), ["list"])
    many = searches.submit(Wanted(), ["dog", "ports"])
    assert searches.waiting == 6
    gate.opened.set()
    found = [[hit.id for hit in one.result(30)[0].hits] for one in (first, *same)]
    assert found == [["notes/dogs"], ["notes/dogs"], ["ports"], ["lists"]]
    assert [hit.id for hit in other.result(30)[0].hits] == ["ports"] and len(cut.result(30)[0].hits) == 1
    assert [one.hits[0].id for one in many.result(30)] == ["notes/dogs", "ports"]
    searches.close()
    assert sorted(calls) == [1, 1, 1, 2, 3]


def test_one_that_fails_fails_alone(index: Index, monkeypatch: pytest.MonkeyPatch) -> None:
    gate = Gate(monkeypatch)
    searches = Searches(index)
    first = searches.submit(Wanted(), ["dogs"])
    assert gate.entered.wait(30)
    broken, fine = searches.submit(Wanted(), ["broken"]), searches.submit(Wanted(), ["ports"])
    gate.opened.set()
    assert [hit.id for hit in fine.result(30)[0].hits] == ["ports"] and first.result(30)
    with pytest.raises(RequestError, match="broken"):
        broken.result(30)
    searches.close()


def test_the_queue_ends(index: Index, monkeypatch: pytest.MonkeyPatch) -> None:
    gate, calls = Gate(monkeypatch), []
    searches = Searches(index, waiting=2, searched=calls.append)
    first = searches.submit(Wanted(), ["dogs"])
    assert gate.entered.wait(30)
    waiting = [searches.submit(Wanted(k=k), ["dogs"]) for k in (1, 2)]
    with pytest.raises(Busy):
        searches.submit(Wanted(), ["dogs"])
    assert waiting[0].cancel()
    closing = threading.Thread(target=searches.close)
    closing.start()
    gate.opened.set()
    closing.join(30)
    assert first.done() and len(waiting[1].result(0)[0].hits) == 1  # what waits is answered before the end
    assert calls == [1, 1]  # what was cancelled is not searched
    with pytest.raises(Busy):
        searches.submit(Wanted(), ["dogs"])


def test_values_of_different_kinds_are_different_searches() -> None:
    keys = {Wanted(where=parse_where({"a": value})).key for value in (1, 1.0, True, "1")}
    assert len(keys) == 4
