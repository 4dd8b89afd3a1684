"""Queries cut into parts, searched one by one, and put together."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from consilience.data.documents import Document
from consilience.errors import RequestError
from consilience.retrieval.aspects import Aspects, AspectSearcher, split_aspects
from consilience.retrieval.index import Index
from consilience.retrieval.searcher import Searcher

TEXTS = {
    "both": "Ice hockey results. Graphics cards compared.",
    "hockey": "Ice hockey results of the week, hockey again and hockey.",
    "graphics": "Graphics cards compared, with graphics and more graphics.",
    "all": "Ice hockey, graphics cards and motorcycles in one letter.",
    "none": "A dog licence is a tax on dogs.",
}


@pytest.fixture
def index(tmp_path: Path) -> Iterator[Index]:
    with Index.create(tmp_path / "index") as index:
        index.add(Document(name, text, fields={"size": len(text)}) for name, text in TEXTS.items())
        yield index


@pytest.mark.parametrize(
    ("query", "all_of", "none_of"),
    [
        ("a AND b", (("a",), ("b",)), ()),
        ("a and b", (("a and b",),), ()),
        ("a; b; c?", (("a",), ("b",), ("c",)), ()),
        ("a OR b, but NOT c", (("a", "b"),), ("c",)),
        ("a but not b AND c", (("a",), ("c",)), ("b",)),
        ("a WITHOUT b or else c", (("a",),), ("b", "c")),
        ("a as well as b and not c", (("a",), ("b",)), ("c",)),
        ("NOT a", (("NOT a",),), ()),
        ("do not stop", (("do not stop",),), ()),
        ("", (("",),), ()),
    ],
)
def test_what_stands_between_parts(query: str, all_of: tuple[tuple[str, ...], ...], none_of: tuple[str, ...]) -> None:
    assert split_aspects(query) == Aspects(all_of, none_of)


@given(st.text("ab ;,ANDORTnotbu", max_size=40))
def test_any_text_has_a_part(query: str) -> None:
    found = split_aspects(query)
    assert found.all_of and all(group for group in found.all_of)


@pytest.mark.parametrize("combine", ["min", "product"])
def test_all_parts_count_and_what_is_not_wanted_goes_down(index: Index, combine: str) -> None:
    searcher = AspectSearcher(Searcher(index), combine=combine)
    both = searcher.search(["ice hockey AND graphics cards"], k=5)[0]
    assert {hit.id for hit in both[:2]} == {"both", "all"} and both[0].found["text"].rank >= 1
    without = [hit.id for hit in searcher.search(["ice hockey AND graphics cards but NOT motorcycles"], k=5)[0]]
    assert without[0] == "both" and without.index("all") > 0
    either = [hit.id for hit in searcher.search(["hockey OR dogs"], k=5)[0]]
    assert {"hockey", "none"} <= set(either)


def test_a_query_of_one_part_is_searched_as_it_is(index: Index) -> None:
    searcher = Searcher(index)
    plain, parts = searcher.search(["ice hockey"], 2)[0], AspectSearcher(searcher).search(["ice hockey"], 2)[0]
    assert [(hit.id, hit.score) for hit in parts] == [(hit.id, hit.score) for hit in plain]
    filtered = AspectSearcher(searcher).search(["hockey AND graphics", "dogs"], where="size < 50")
    assert {hit.id for hits in filtered for hit in hits} == {"both", "none"}
    assert AspectSearcher(searcher).search(["nowhere AND nothing"]) == [[]]


def test_what_is_wrong_is_said(index: Index) -> None:
    searcher = Searcher(index)
    with pytest.raises(RequestError, match="min or product"):
        AspectSearcher(searcher, combine="sum")
    with pytest.raises(RequestError, match="depth 0"):
        AspectSearcher(searcher, depth=0)
    with pytest.raises(RequestError, match="list of strings"):
        AspectSearcher(searcher).search("a")
    with pytest.raises(RequestError, match="k is 0"):
        AspectSearcher(searcher).search(["a"], 0)
