from __future__ import annotations

import math
import re
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path

import pytest

from consilience.bench import Evaluation, Row, evaluate
from consilience.bench.report.colours import STEPS, THEMES, class_name, scale_words, step
from consilience.bench.report.svg import label_lines
from consilience.bench.table import signed
from consilience.errors import ConsilienceError
from tests.bench.toy import BrokenEncoder, WordEncoder, suite

RECIPE = "method: ties\nexperts: {a: <b>&x}\n"


class Collector(HTMLParser):
    """Collects text, attributes and the balance of tags."""

    void = ("meta", "br", "rect", "line", "path")

    def __init__(self) -> None:
        super().__init__()
        self.text: list[str] = []
        self.attributes: list[tuple[str, str, str]] = []
        self.open: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.attributes += [(tag, key, value or "") for key, value in attrs]
        if tag not in self.void:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.attributes += [(tag, key, value or "") for key, value in attrs]

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.text.append(data)


@pytest.fixture(scope="module")
def evaluation() -> Evaluation:
    models = {
        "base": WordEncoder("base", {"code": 3.0, "law": 3.0}),
        "coder": WordEncoder("coder", {"code": 0.5, "law": 5.0}),
        "merged": WordEncoder("merged", {"code": 1.0}),
        "broken": BrokenEncoder("broken"),
    }
    return evaluate(
        suite(), models, experts=["coder"], recipes={"merged": RECIPE}, transductive=["merged"], progress=False
    )


def parsed(page: str) -> Collector:
    collector = Collector()
    collector.feed(page)
    collector.close()
    assert collector.open == []
    return collector


def test_every_number_of_the_table_is_printed(evaluation: Evaluation) -> None:
    text = " ".join(parsed(evaluation.to_html()).text)
    for name in evaluation.names:
        for domain in (*evaluation.domains, None):
            value = evaluation.value(name, domain)
            if math.isnan(value):
                continue
            gain = evaluation.difference(name, domain)
            assert f"{value:.1f}" in text
            if name != evaluation.base:
                assert f"{signed(gain.difference)} [{signed(gain.low)}, {signed(gain.high)}]" in text.replace("  ", " ")
    for number in ("n = 10", "n = 20", "failed", "10,000 resamples", "seed 0", evaluation.provenance["suite_hash"]):
        assert number in text
    assert evaluation.claim() in text
    assert evaluation.row("broken").failures["law"] in text


def test_recipes_stamps_and_protocol_are_shown(evaluation: Evaluation) -> None:
    text = "".join(parsed(evaluation.to_html(title="A <title>")).text)
    assert RECIPE in text
    assert "A <title>" in text
    assert "transductive" in text
    for row in evaluation.rows:
        assert row.fingerprint in text
    for entry in evaluation.suite["domains"].values():
        assert entry["content_hash"] in text


def test_nothing_external_is_referenced(evaluation: Evaluation) -> None:
    page = evaluation.to_html()
    assert not re.search(r"https?:|//[a-z]|@import|url\(|<script|<link|<img|<iframe|<object", page, re.IGNORECASE)
    loading = {"src", "href", "srcset", "data", "action", "poster", "background", "xlink:href"}
    for tag, key, _ in parsed(page).attributes:
        assert key not in loading, (tag, key)
        assert not key.startswith("on")


def test_texts_of_users_are_escaped(evaluation: Evaluation) -> None:
    evil = '<script>alert("x")</script>&'
    rows = tuple(
        replace(row, name=evil if row.name == "merged" else row.name, stamps=(evil,)) for row in evaluation.rows
    )
    domains = {evil if name == "law" else name: ids for name, ids in evaluation.queries.items()}
    renamed = tuple(
        replace(row, scores={evil if key == "law" else key: values for key, values in row.scores.items()}, recipe=evil)
        for row in rows
    )
    changed = replace(
        evaluation, rows=renamed, queries=domains, notes=(evil,), suite={**evaluation.suite, "name": evil}
    )
    page = changed.to_html(title=evil)
    assert "<script" not in page
    assert evil in "".join(parsed(page).text)


def test_the_page_is_written_whole_where_asked(evaluation: Evaluation, tmp_path: Path) -> None:
    target = tmp_path / "new" / "report.html"
    page = evaluation.to_html(target)
    assert target.read_text(encoding="utf-8") == page
    assert page.startswith("<!doctype html>")
    assert len(page) < 200_000
    (tmp_path / "file").write_text("")
    with pytest.raises(ConsilienceError, match="its folder cannot be made"):
        evaluation.to_html(tmp_path / "file" / "report.html")


def test_a_page_of_the_base_alone_and_of_one_query() -> None:
    alone = Evaluation(
        {"name": "s", "metric": "nDCG@10"},
        "test",
        "base",
        {"d": ("q",)},
        {"d": 1},
        (Row("base", "base", {"d": (0.5,)}),),
    )
    assert "Only the base was measured." in alone.to_html()
    pair = replace(alone, rows=(*alone.rows, Row("m", "candidate", {"d": (0.75,)})))
    assert "+25.0 [–, –]" in "".join(parsed(pair.to_html()).text).replace("\n", "")


def test_colours_keep_their_contrast_in_both_themes() -> None:
    for theme in THEMES.values():
        assert set(theme) == set(range(-STEPS, STEPS + 1))
        for fill, ink in theme.values():
            light, dark = sorted((luminance(fill), luminance(ink)), reverse=True)
            assert (light + 0.05) / (dark + 0.05) >= 4.5


def test_steps_and_words_agree() -> None:
    assert [step(points) for points in (-9, -6, -3, -1, 0, 0.4, 1, 3, 6, 9)] == [-4, -3, -2, -1, 0, 0, 1, 2, 3, 4]
    assert step(float("nan")) == 0
    assert [number for number, _ in scale_words()] == list(range(-STEPS, STEPS + 1))
    assert scale_words()[4] == (0, "within 0.5")
    assert {class_name(number) for number, _ in scale_words()} == {
        *(f"loss{n}" for n in range(1, 5)),
        *(f"gain{n}" for n in range(5)),
    }


def test_long_names_fit() -> None:
    assert label_lines("a" * 40) == ["a" * 11 + "…"]
    assert all(len(line) <= 14 for line in label_lines("software_debian_packages-of_the_stable"))


def luminance(colour: str) -> float:
    parts = [int(colour[index : index + 2], 16) / 255 for index in (1, 3, 5)]
    linear = [part / 12.92 if part <= 0.04045 else ((part + 0.055) / 1.055) ** 2.4 for part in parts]
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]
