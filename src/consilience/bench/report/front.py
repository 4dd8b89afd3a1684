"""Pictures of a Pareto front: a plane for each pair of up to three tasks, parallel coordinates for three and more."""

from __future__ import annotations

from collections.abc import Sequence
from html import escape
from itertools import combinations

from consilience.bench.report.svg import element, text
from consilience.tuning.pareto import ParetoFront

__all__ = ["front_picture"]

_PLANE, _MARGIN, _GAP = 340, 56, 24
_COLUMN, _HEIGHT = 120, 260
_MOST_PLANES = 3  # tasks up to which every pair gets a plane
_LETTERS = 18
_STYLE = (
    "svg{font:12px system-ui,sans-serif;--ink:#1b1f24;--soft:#8a949e;--front:#1b5fa8;--paper:#fff}"
    "svg{background:var(--paper)}"
    "@media (prefers-color-scheme:dark){svg{--ink:#f0f3f6;--soft:#8a949e;--front:#7cbcf5;--paper:#14181d}}"
    "text{fill:var(--ink)}.axis{stroke:var(--soft);fill:none}.front{stroke:var(--front);fill:none;stroke-width:1.5}"
    ".point{fill:var(--front)}.whisker{stroke:var(--front);fill:none;opacity:.5}"
    ".sample{fill:none;stroke:var(--soft)}.reference{fill:var(--ink)}.known{stroke:var(--ink);fill:none;"
    "stroke-dasharray:4 3}.small{font-size:11px}"
)

Triple = tuple[float, float, float]


def front_picture(front: ParetoFront, *, metric: str = "") -> str:
    """Return a standalone SVG of a front, light and dark.

    Points are the front with the whiskers of its 95 % intervals (held-out values where there are any, else measured or
    predicted ones), labelled squares are the base and the experts alone. Circles are the evaluations of the search, on
    the data that was searched on; they are left out where the points are held-out values, which do not compare.
    """
    points = [_triples(front, i) for i in range(len(front.points))]
    held = any(point.held_out is not None for point in front.points)
    samples = [] if held else front.metrics.tolist()
    parts, width, height = [], 0, 0
    if len(front.tasks) <= _MOST_PLANES:
        for a, b in combinations(range(len(front.tasks)), 2):
            parts.append(_plane(front, points, samples, a, b, width, metric))
            width += _PLANE + _GAP
        height = _PLANE
    if len(front.tasks) >= _MOST_PLANES or len(front.tasks) == 1:
        parts.append(_parallel(front, points, height))
        width = max(width, 2 * _MARGIN + _COLUMN * max(len(front.tasks) - 1, 1))
        height += _HEIGHT
    where = "held-out queries, with 95 % intervals" if held else "the data searched on"
    title = f"Pareto front of {', '.join(front.experts)} on {', '.join(front.tasks)}: {where}"
    content = element("title", escape(title)) + f"<style>{_STYLE}</style>" + "".join(parts)
    return element("svg", content, xmlns="http://www.w3.org/2000/svg", viewBox=f"0 0 {width} {height}", role="img")


def _triples(front: ParetoFront, index: int) -> list[Triple]:
    point = front.points[index]
    if point.held_out is not None:
        return list(point.held_out)
    values = point.measured or point.predicted or ()
    return [(value, value, value) for value in values]


def _range(values: Sequence[float]) -> tuple[float, float]:
    finite = [value for value in values if value == value]
    low, high = min(finite), max(finite)
    room = (high - low) * 0.06 or 0.01
    return low - room, high + room


def _plane(
    front: ParetoFront,
    points: list[list[Triple]],
    samples: list[list[float]],
    a: int,
    b: int,
    left: int,
    metric: str,
) -> str:
    known = front.references
    ranges = []
    for t in (a, b):
        shown = [bound for p in points for bound in p[t]] + [s[t] for s in samples]
        ranges.append(_range(shown + [held[t][0] for held in known.values()]))

    def x(value: float) -> float:
        low, high = ranges[0]
        return left + _MARGIN + (value - low) / (high - low) * (_PLANE - _MARGIN - 12)

    def y(value: float) -> float:
        low, high = ranges[1]
        return _PLANE - _MARGIN + 12 - (value - low) / (high - low) * (_PLANE - _MARGIN - 12)

    bottom, start, end = _PLANE - _MARGIN + 12, left + _MARGIN, left + _PLANE - 12
    names = [f"{front.tasks[t][:_LETTERS]}{f' {metric}' if metric else ''}" for t in (a, b)]
    parts = [
        element("path", d=f"M{start} 12V{bottom}H{end}", class_="axis"),
        text(names[0], (start + end) / 2, _PLANE - 12.0, text_anchor="middle"),
        text(names[1], 14, _PLANE / 2, text_anchor="middle", transform=f"rotate(-90 {left + 14} {_PLANE / 2:.0f})")
        if left == 0
        else text(names[1], left + 14.0, _PLANE / 2, transform=f"rotate(-90 {left + 14} {_PLANE / 2:.0f})"),
    ]
    for value in ranges[0]:
        parts.append(text(f"{value:.2f}", x(value), bottom + 16.0, text_anchor="middle", class_="small"))
    for value in ranges[1]:
        parts.append(text(f"{value:.2f}", start - 6.0, y(value) + 4, text_anchor="end", class_="small"))
    parts += [element("circle", cx=x(s[a]), cy=y(s[b]), r=3, class_="sample") for s in samples if s[a] == s[a]]
    ordered = sorted(points, key=lambda p: p[a][0])
    line = " ".join(f"{x(p[a][0]):.1f},{y(p[b][0]):.1f}" for p in ordered)
    parts.append(element("polyline", points=line, class_="front"))
    for p in points:
        (u, low, high), (v, below, above) = p[a], p[b]
        path = f"M{x(low):.1f} {y(v):.1f}H{x(high):.1f}M{x(u):.1f} {y(below):.1f}V{y(above):.1f}"
        parts.append(element("path", d=path, class_="whisker"))
        parts.append(element("circle", cx=x(u), cy=y(v), r=4, class_="point"))
    for name, held in known.items():
        u, v = held[a][0], held[b][0]
        parts.append(element("rect", x=x(u) - 4, y=y(v) - 4, width=8, height=8, class_="reference"))
        parts.append(text(name[:_LETTERS], x(u) + 7, y(v) - 6, class_="small"))
    return "".join(parts)


def _parallel(front: ParetoFront, points: list[list[Triple]], top: int) -> str:
    """One vertical axis per task, one line per point of the front; dashed lines are the references."""
    known = front.references
    ranges = [
        _range([p[t][0] for p in points] + [held[t][0] for held in known.values()]) for t in range(len(front.tasks))
    ]

    def place(task: int, value: float) -> tuple[float, float]:
        low, high = ranges[task]
        return _MARGIN + task * _COLUMN, top + _HEIGHT - 48 - (value - low) / (high - low) * (_HEIGHT - 80)

    parts = []
    for task, name in enumerate(front.tasks):
        at = _MARGIN + task * _COLUMN
        parts.append(element("line", x1=at, x2=at, y1=top + 32, y2=top + _HEIGHT - 48, class_="axis"))
        parts.append(text(name[:_LETTERS], at, top + 14.0, text_anchor="middle"))
        for value, away in zip(ranges[task], (12, -4), strict=True):
            edge = place(task, value)[1] + away
            parts.append(text(f"{value:.2f}", at, edge, text_anchor="middle", class_="small"))
    lines = [(p, "front") for p in points] + [(list(held), "known") for held in known.values()]
    for triples, kind in lines:
        line = " ".join("{:.1f},{:.1f}".format(*place(t, triple[0])) for t, triple in enumerate(triples))
        parts.append(element("polyline", points=line, class_=kind))
    names = ", ".join(known)
    if names:
        parts.append(text(f"dashed: {names}", _MARGIN, top + _HEIGHT - 12.0, class_="small"))
    return "".join(parts)
