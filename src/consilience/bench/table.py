"""The table for people, on a terminal."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

from rich.table import Table
from rich.text import Text

from consilience.bench.bootstrap import Difference

if TYPE_CHECKING:
    from consilience.bench.evaluation import Evaluation

__all__ = ["PARTIAL_WORDS", "build_table", "oracle_label", "partial_mark", "signed"]


def signed(value: float) -> str:
    """Return points with their sign and one decimal, 0.0 without one.

    >>> signed(3.14), signed(-3.14), signed(-0.01), signed(float("nan"))
    ('+3.1', '−3.1', '0.0', '–')
    """
    if math.isnan(value):
        return "–"
    text = f"{value:+.1f}"
    return "0.0" if text in ("+0.0", "-0.0") else text.replace("-", "−")


def oracle_label(chosen_on: str | None, split: str) -> str:
    """Return how the oracle's choice was made, in words."""
    if chosen_on == split:
        return f"best of base and experts per domain, chosen on {split} itself: an upper bound"
    return f"best of base and experts per domain, chosen on {chosen_on}"


PARTIAL_WORDS = "† mean over the domains that did not fail; its difference is over the same domains of both models."


def partial_mark(evaluation: Evaluation, name: str, domain: str | None) -> str:
    """Return "†" for a mean that leaves out failed domains."""
    return "†" if domain is None and evaluation.failed(name) else ""


def build_table(evaluation: Evaluation, *, to: str | None = None) -> Table:
    """Return the table: one row per model, one column per domain, the mean and its difference to `to` (the base)."""
    reference = evaluation.row(to or evaluation.base).name
    table = Table(title=f"{evaluation.metric} x 100, split {evaluation.split}", title_justify="left", pad_edge=False)
    table.add_column("model", no_wrap=True)
    for domain in evaluation.domains:
        table.add_column(f"{domain}\nn={evaluation.n(domain)}", justify="right")
    table.add_column(f"mean\nn={evaluation.n()}", justify="right")
    table.add_column(f"mean - {reference}\n95% interval", justify="right")
    table.add_column("failed", justify="right")
    kind = ""
    for row in evaluation.rows:
        if kind and row.kind != kind:
            table.add_section()
        kind = row.kind
        cells = [_cell(evaluation, row.name, domain, reference) for domain in (*evaluation.domains, None)]
        gain = evaluation.difference(row.name, to=reference)
        name = row.name + "".join(f" [{stamp}]" for stamp in row.stamps)
        table.add_row(Text(name), *cells, _interval(gain, row.name == reference), str(len(row.failures)))
    lines = [f"Second line: paired difference to {reference}; * = its 95% interval excludes 0."]
    if evaluation.oracle_chosen_on:
        lines.append(f"oracle: {oracle_label(evaluation.oracle_chosen_on, evaluation.split)}.")
    if any(row.failures for row in evaluation.rows):
        lines.append(PARTIAL_WORDS)
        lines += [f"{r.name}: mean over n={evaluation.n(None, r.name)}" for r in evaluation.rows if r.failures]
    lines += [f"{row.name}, {domain} failed: {why}" for row in evaluation.rows for domain, why in row.failures.items()]
    table.caption = Text("\n".join([*lines, *evaluation.notes]))
    table.caption_justify = "left"
    return table


def _cell(evaluation: Evaluation, name: str, domain: str | None, reference: str) -> Text:
    value = evaluation.value(name, domain)
    text = Text("failed" if math.isnan(value) else f"{value:.1f}" + partial_mark(evaluation, name, domain))
    if name == reference or math.isnan(value):
        return text
    gain = evaluation.difference(name, domain, to=reference)
    style = ("green" if gain.difference > 0 else "red") if gain.excludes_zero else "dim"
    return text.append("\n" + signed(gain.difference) + ("*" if gain.excludes_zero else ""), style=style)


def _interval(gain: Difference, is_reference: bool) -> str:
    if is_reference:
        return ""
    return f"{signed(gain.difference)}\n{signed(gain.low)} to {signed(gain.high)}"
