"""The heat map: models by domains, coloured by the difference to the base."""

from __future__ import annotations

import math
from html import escape

from consilience.bench.evaluation import MEAN, Evaluation
from consilience.bench.report.colours import class_name, scale_words, step
from consilience.bench.report.svg import element, label_lines, text
from consilience.bench.table import partial_mark, signed

__all__ = ["heat_map"]

_CELL_WIDTH, _CELL_HEIGHT, _GAP = 88, 44, 3
_HEAD = 50
_GROUP_GAP = 8  # between base, experts, baselines, candidates and oracle
_CHARACTER = 9.0


def heat_map(evaluation: Evaluation) -> str:
    """Return the SVG: values printed in every cell, their difference below, a dot where the interval excludes 0."""
    columns = [*evaluation.domains, MEAN]
    label_width = 24 + _CHARACTER * max(len(name) for name in evaluation.names)
    label_width = min(max(label_width, 90), 240)
    width = label_width + len(columns) * (_CELL_WIDTH + _GAP) + 8
    parts = [_heading(column, label_width, index) for index, column in enumerate(columns)]
    top, kind = _HEAD - _CELL_HEIGHT - _GAP, evaluation.rows[0].kind
    for row in evaluation.rows:
        name = row.name
        top += _CELL_HEIGHT + _GAP + (_GROUP_GAP if row.kind != kind else 0)
        kind = row.kind
        limit = int((label_width - 16) / _CHARACTER)
        shown = name if len(name) <= limit else name[: limit - 1] + "…"
        parts.append(text(shown, label_width - 12, top + _CELL_HEIGHT / 2 + 5, text_anchor="end", class_="label"))
        for index, column in enumerate(columns):
            left = label_width + index * (_CELL_WIDTH + _GAP) + (6 if column == MEAN else 0)
            parts.append(_cell(evaluation, name, column, left, top))
    height = top + _CELL_HEIGHT + 4
    title = f"{evaluation.metric} of every model in every domain, coloured by the difference to {evaluation.base}"
    content = element("title", escape(title)) + "".join(parts)
    return element("svg", content, viewBox=f"0 0 {width:.0f} {height}", width=width, role="img", class_="heatmap")


def legend() -> str:
    """Return the colour scale as SVG with its ranges in words."""
    width = 104
    parts = []
    for index, (number, words) in enumerate(scale_words()):
        name = class_name(number)
        parts.append(element("rect", x=index * (width + 2), y=0, width=width, height=26, rx=4, class_=name))
        x = index * (width + 2) + width / 2
        parts.append(text(words, x, 17.5, text_anchor="middle", class_=f"small {name}"))
    total = len(scale_words()) * (width + 2)
    content = element("title", "Colour scale: points gained or lost") + "".join(parts)
    return element("svg", content, viewBox=f"0 0 {total} 26", width=total, role="img", class_="legend")


def _heading(column: str, label_width: float, index: int) -> str:
    x = label_width + index * (_CELL_WIDTH + _GAP) + _CELL_WIDTH / 2 + (6 if column == MEAN else 0)
    lines = label_lines(column)
    return "".join(
        text(line, x, _HEAD - 12 - 16 * (len(lines) - 1 - number), text_anchor="middle", class_="heading")
        for number, line in enumerate(lines)
    )


def _cell(evaluation: Evaluation, name: str, column: str, left: float, top: float) -> str:
    domain = None if column == MEAN else column
    value = evaluation.value(name, domain)
    middle = left + _CELL_WIDTH / 2
    if math.isnan(value):
        box = element("rect", x=left, y=top, width=_CELL_WIDTH, height=_CELL_HEIGHT, rx=5, class_="failed")
        return box + text("failed", middle, top + 27, text_anchor="middle", class_="small")
    gain = evaluation.difference(name, domain)
    shade = class_name(step(gain.difference))
    tip = f"{name}, {column}: {value:.1f}, {signed(gain.difference)} to {evaluation.base}"
    tip += f" ({signed(gain.low)} to {signed(gain.high)}), n = {gain.n}"
    is_base = name == evaluation.base
    shown = f"{value:.1f}" + partial_mark(evaluation, name, domain)
    parts = [
        element("title", escape(tip)),
        element("rect", x=left, y=top, width=_CELL_WIDTH, height=_CELL_HEIGHT, rx=5, class_=shade),
        text(shown, middle, top + (27 if is_base else 19), text_anchor="middle", class_=f"value {shade}"),
    ]
    if not is_base:
        change = signed(gain.difference) + (" ●" if gain.excludes_zero else "")
        parts.append(text(change, middle, top + 35, text_anchor="middle", class_=f"small {shade}"))
    return element("g", "".join(parts))
