"""Gain and loss bars with their intervals, one panel per model."""

from __future__ import annotations

import math
from html import escape

from consilience.bench.evaluation import MEAN, Evaluation
from consilience.bench.report.svg import element, text
from consilience.bench.table import signed

__all__ = ["gain_bars", "gain_range"]

_WIDTH, _ROW, _HEAD = 480, 26, 8
_LABEL, _NUMBERS = 128, 146
_LETTERS = 17


def gain_range(evaluation: Evaluation, names: list[str]) -> tuple[float, float]:
    """Return the common scale of all panels in points: every interval and 0 fit."""
    low, high = -1.0, 1.0
    for name in names:
        for domain in (*evaluation.domains, None):
            gain = evaluation.difference(name, domain)
            for value in (gain.difference, gain.low, gain.high):
                if not math.isnan(value):
                    low, high = min(low, value), max(high, value)
    return low, high


def gain_bars(evaluation: Evaluation, name: str, scale: tuple[float, float]) -> str:
    """Return the SVG of one model: a bar per domain and for the mean, with a whisker for the 95 % interval.

    Bars whose interval includes 0 are hollow: colour is not the only sign.
    """
    columns = [MEAN, *evaluation.domains] if len(evaluation.domains) > 1 else list(evaluation.domains)
    height = _HEAD + len(columns) * _ROW + 6
    left, right = _LABEL, _WIDTH - _NUMBERS
    low, high = scale

    def x(points: float) -> float:
        return left + (points - low) / (high - low) * (right - left)

    zero = x(0)
    parts = [element("line", x1=zero, x2=zero, y1=2, y2=height - 4, class_="axis")]
    for index, column in enumerate(columns):
        gain = evaluation.difference(name, None if column == MEAN else column)
        middle = _HEAD + index * _ROW + _ROW / 2
        shown = column if len(column) <= _LETTERS else column[: _LETTERS - 1] + "…"
        strong = " strong" if column == MEAN else ""
        parts.append(text(shown, left - 10, middle + 4, text_anchor="end", class_=f"small{strong}"))
        if math.isnan(gain.difference):
            parts.append(text("failed", zero + 6, middle + 4, class_="small"))
            continue
        start, end = sorted((zero, x(gain.difference)))
        kind = ("up" if gain.difference > 0 else "down") + ("" if gain.excludes_zero else " unsure")
        parts.append(
            element("rect", x=start, y=middle - 7, width=max(end - start, 1.0), height=14, rx=2, class_=f"bar {kind}")
        )
        if not math.isnan(gain.low):
            a, b = x(gain.low), x(gain.high)
            parts.append(
                element(
                    "path",
                    d=f"M{a:.1f} {middle - 4}v8M{a:.1f} {middle}H{b:.1f}M{b:.1f} {middle - 4}v8",
                    class_="whisker",
                )
            )
        numbers = f"{signed(gain.difference)} [{signed(gain.low)}, {signed(gain.high)}]"
        parts.append(text(numbers, _WIDTH - 4, middle + 4, text_anchor="end", class_=f"small{strong}"))
    title = f"Points {name} gains or loses against {evaluation.base}, with 95 % intervals"
    content = element("title", escape(title)) + "".join(parts)
    return element("svg", content, viewBox=f"0 0 {_WIDTH} {height}", role="img", class_="bars")
