from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from consilience.data.documents import Document
from consilience.data.ingestion.chunking import chunk
from consilience.data.ingestion.edges import Relation, normal_entity, relations
from consilience.data.ingestion.edges.rules import said
from consilience.errors import RequestError

SENTENCES = Path(__file__).parent / "rule_sentences.txt"


def page(text: str, name: str = "docs/a.md", kind: str = "markdown", **fields: object) -> Document:
    return Document(name, text, title="The A Page", fields={"format": kind, **fields}, source=name)  # type: ignore[dict-item]


def triples(document: Document, *names: str) -> set[tuple[str, str, str]]:
    return {(one.head, one.name, one.tail) for one in relations(document, [document], names)}


def test_links_lead_to_files_of_the_folder_and_wiki_links_to_titles() -> None:
    text = """See [b](b.md), [up](../c%20d.md#part "title"), ![picture](p.png), [root](/e.html), [site](https://x.org/y.md),
[mail](mailto:a@b.c), [self](a.md), [top](#here), [out](../../x.md), [[Open  Ports#how|shown]], `[code](no.md)`.

```
[fenced](no.md) [[No]]
```
[ref]: sub/f.md 'F'
"""
    found = triples(page(text), "links")
    tails = {"docs/b.md", "c d.md", "e.html", "docs/sub/f.md", "open ports"}
    assert found == {("the a page", "title of", "docs/a.md"), *(("the a page", "links to", tail) for tail in tails)}
    html = page("", "a.html", "html", links=("b.html?x=1", "//other.org/c.html", "javascript:no()"))
    assert ("the a page", "links to", "b.html") in triples(html, "links") and len(triples(html, "links")) == 2


def test_a_relation_names_the_piece_that_says_it() -> None:
    document = page("# One\n\nword word\n\n# Two\n\nsee [b](b.md)\n\n# Three\n\nsee [b](b.md)")
    pieces = chunk(document, words=2)
    links = [one for one in relations(document, pieces, ["links"]) if one.name == "links to"]
    assert [one.document for one in links] == ["docs/a.md#2", "docs/a.md#3"]
    assert list(relations(document, pieces, ["links"])) == list(relations(document, pieces, ["links"]))


def test_rows_say_what_their_columns_hold() -> None:
    fields = {"director": "Alex  Proyas", "year": 1998, "date": "1998-02-27", "tags": ("Noir", "SF"), "ok": True}
    fields |= {"plot": "A man wakes up in a bath with no memory", "site": "http://x.org", "table": "films"}
    fields["references"] = ("city -> shop.db#cities.3",)
    row = Document("shop.db#films.1", "text", title="Dark City", fields=fields, source="shop.db")  # type: ignore[arg-type]
    assert triples(row, "tables", "links", "rules") == {
        ("dark city", "title of", "shop.db#films.1"), ("dark city", "director", "alex proyas"),
        ("dark city", "tags", "noir"), ("dark city", "tags", "sf"), ("dark city", "city", "shop.db#cities.3"),
    }  # fmt: skip
    untitled = Document("a.csv#1", "text", fields={"maker": "Acme"}, source="a.csv")
    assert triples(untitled, "tables") == {("a.csv#1", "maker", "acme")}
    assert not triples(page("Plain text."), "tables")


def cases() -> list[tuple[str, set[tuple[str, ...]], bool]]:
    found: list[tuple[str, set[tuple[str, ...]], bool]] = []
    later = False
    for line in SENTENCES.read_text().splitlines():
        if line.startswith("#"):
            later = later or line == "# unseen"
        elif line.startswith("- "):
            found[-1][1].add(tuple(line[2:].split(" | ")))
        else:
            found.append((line, set(), later))
    return found


@pytest.mark.parametrize(("later", "precision", "recall"), [(False, 0.95, 0.85), (True, 0.9, 0.7)])
def test_the_rules_prefer_precision(later: bool, precision: float, recall: float) -> None:
    right = found = wanted = 0
    for sentence, expected, place in cases():
        if place == later:
            got = set(said(sentence))
            right, found, wanted = right + len(got & expected), found + len(got), wanted + len(expected)
    assert right / found >= precision and right / wanted >= recall, (right, found, wanted)


@settings(max_examples=100, deadline=None)
@given(st.text(max_size=40))
def test_names_of_entities_are_normal_once_and_for_all(text: str) -> None:
    once = normal_entity(text)
    assert normal_entity(f"  {once} ") == once and "  " not in once


@settings(max_examples=100, deadline=None)
@given(st.text("AB ab.,()[]`#\n|isw", max_size=200))
def test_any_text_has_relations_of_nonempty_names(text: str) -> None:
    for one in relations(page(text), [page(text)], ["links", "rules", "tables"]):
        assert isinstance(one, Relation) and one.head and one.tail and one.head != one.tail


def test_long_lines_take_no_time() -> None:
    for text in ("[a](" * 100_000, "[[" * 100_000, "A " * 200_000, "\n" * 200_000, "`" * 200_000):
        assert len(list(relations(page(text), [page(text)], ["links", "rules"]))) == 1


def test_unknown_extractors_are_refused() -> None:
    with pytest.raises(RequestError, match="did you mean 'links'"):
        list(relations(page(""), [], ["linkz"]))
