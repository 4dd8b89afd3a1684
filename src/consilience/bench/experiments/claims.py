"""The report of an experiment: tables, claims with verdicts, written for people and for programs."""

from __future__ import annotations

import json
import math
import sys
import time
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any, Literal

from consilience.bench.experiments.scores import Paired, Scores, compare
from consilience.core.atomic import write_text_atomic
from consilience.core.hashing import file_xxh3
from consilience.core.records import write_record
from consilience.errors import RequestError

__all__ = ["Claim", "Report"]

_VERSION = 1
_WORDS = {True: "holds", False: "does not hold", None: "undecided"}


@dataclass(frozen=True)
class Claim:
    """A statement, whether it holds (None: the data do not decide), and the numbers behind the verdict."""

    text: str
    holds: bool | None
    detail: str

    @property
    def verdict(self) -> str:
        """The verdict in words: holds, does not hold, undecided."""
        return _WORDS[self.holds]


class Report:
    """Tables, notes and claims of one experiment, in the order in which they are added.

    >>> import tempfile
    >>> report = Report("demo", "A demonstration", out=Path(tempfile.mkdtemp()))
    >>> report.table([["mean", 0.5], ["best", 0.75]], ["model", "accuracy"], "Two models")
    >>> report.claim("the best is above 0.7", 0.75 > 0.7, "0.75").verdict
    'holds'
    >>> report.finish(show=False)["claims"][0]["verdict"]
    'holds'

    A failed claim is a result, not an error: it stays in the report.
    """

    def __init__(
        self,
        slug: str,
        title: str,
        *,
        source: str = "",
        out: str | Path | None = None,
        quick: bool = False,
        seeds: Sequence[int] = (),
    ) -> None:
        self.slug, self.title, self.source = slug, title, source
        self.out = Path("build/reproductions") / slug if out is None else Path(out)
        self.quick, self.seeds = quick, tuple(seeds)
        self.claims: list[Claim] = []
        self._parts: list[tuple[str, Any]] = []
        self._started, self._cpu = time.perf_counter(), time.process_time()

    def table(self, rows: Iterable[Sequence[Any]], columns: Sequence[str], caption: str = "") -> None:
        """Add a table. Floats are shown with four decimals, intervals as `Paired` says, None as a dash."""
        kept = [list(row) for row in rows]
        wrong = [row for row in kept if len(row) != len(columns)]
        if wrong:
            raise RequestError(f"table {caption!r}: {len(columns)} columns, but a row has {len(wrong[0])}: {wrong[0]}")
        self._parts.append(("table", {"caption": caption, "columns": list(columns), "rows": kept}))

    def note(self, text: str) -> None:
        """Add a paragraph."""
        self._parts.append(("note", text))

    def claim(self, text: str, holds: bool | None, detail: str = "") -> Claim:
        """Add a claim with its verdict."""
        claim = Claim(text, None if holds is None else bool(holds), detail)
        self.claims.append(claim)
        self._parts.append(("claim", claim))
        return claim

    def difference(
        self,
        text: str,
        a: Scores | Sequence[Scores],
        b: Scores | Sequence[Scores],
        *,
        margin: float = 0.0,
        decide: Literal["interval", "mean", "every seed"] = "interval",
    ) -> Claim:
        """Add the claim that `a` - `b` is above `margin`, over the paired examples and seeds.

        decide="interval": holds when the 95 % interval lies above the margin, does not hold when it lies below, else
        undecided. decide="mean": the claim is about the mean of this run alone (at least the margin; above it for a
        margin of 0); the interval is shown beside it. decide="every seed": the same of each seed's mean.
        margin=-0.005: "not lower by more than 0.005".
        """
        found = compare(a, b)
        holds: bool | None
        if decide != "interval":
            least = found.difference if decide == "mean" else min(found.by_seed)
            holds = least > margin if margin == 0 else least >= margin
        else:
            holds = True if found.low > margin else False if found.high < margin else None
        seeds = ", ".join(f"{value:+.4f}" for value in found.by_seed)
        detail = f"difference {found}, n={found.n}, {found.seeds} seeds ({seeds}), margin {margin:+g}, by {decide}"
        return self.claim(text, holds, detail)

    def finish(self, *, show: bool = True) -> dict[str, Any]:
        """Print the report, write `report.md` and `report.json` to `out`, return the content of the latter."""
        record = {
            "slug": self.slug,
            "title": self.title,
            "source": self.source,
            "quick": self.quick,
            "seeds": list(self.seeds),
            "claims": [{"text": c.text, "verdict": c.verdict, "detail": c.detail} for c in self.claims],
            "tables": [_plain(content) for kind, content in self._parts if kind == "table"],
            "notes": [content for kind, content in self._parts if kind == "note"],
            "seconds": round(time.perf_counter() - self._started, 1),
            "cpu_seconds": round(time.process_time() - self._cpu, 1),
            "program": _program(),
            "versions": {name: version(name) for name in ("consilience", "torch", "numpy")},
        }
        text = self._markdown(record)
        self.out.mkdir(parents=True, exist_ok=True)
        write_text_atomic(self.out / "report.md", text)
        write_record(self.out / "report.json", "reproduction", _VERSION, record)
        if show:
            print(text)
        return record

    def _markdown(self, record: dict[str, Any]) -> str:
        lines = [f"# {self.title}", ""]
        if self.source:
            lines += [f"Source: {self.source}", ""]
        if self.quick:
            lines += ["A quick run: small data, no evidence.", ""]
        for kind, content in self._parts:
            if kind == "table":
                lines += [*([f"**{content['caption']}**", ""] if content["caption"] else []), *_rows(content), ""]
            elif kind == "note":
                lines += [content, ""]
        lines += ["| claim | verdict | numbers |", "|---|---|---|"]
        lines += [f"| {claim.text} | **{claim.verdict}** | {claim.detail} |" for claim in self.claims]
        facts = f"{record['seconds']:.0f} s wall, {record['cpu_seconds']:.0f} s CPU"
        seeds = f"seeds {', '.join(map(str, self.seeds))}; " if self.seeds else ""
        versions = ", ".join(f"{name} {number}" for name, number in record["versions"].items())
        return "\n".join([*lines, "", f"{seeds}{facts}; {versions}.", ""])


def _program() -> str | None:
    """Return the checksum of the file that is run: with it, thresholds are known to be older than their verdicts."""
    file = getattr(sys.modules["__main__"], "__file__", None)
    return None if file is None or not Path(file).is_file() else file_xxh3(Path(file))


def _rows(table: dict[str, Any]) -> list[str]:
    cells = [table["columns"], *([_cell(value) for value in row] for row in table["rows"])]
    widths = [max(len(row[index]) for row in cells) for index in range(len(table["columns"]))]
    lines = [
        "| " + " | ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)) + " |" for row in cells
    ]
    return [lines[0], "|" + "|".join("-" * (width + 2) for width in widths) + "|", *lines[1:]]


def _cell(value: Any) -> str:
    if value is None or (isinstance(value, float) and math.isnan(value)):
        return "–"
    if isinstance(value, float):
        return f"{value:.4f}"
    return str(value)


def _plain(value: Any) -> Any:
    """Return plain data: an interval as its parts, numbers of NumPy as Python's, NaN as None."""
    if isinstance(value, Paired):
        return {key: _plain(part) for key, part in value._asdict().items()}
    if isinstance(value, dict):
        return {str(key): _plain(part) for key, part in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(part) for part in value]
    if isinstance(value, float):
        return float(value) if math.isfinite(value) else None
    return value if value is None or isinstance(value, bool | int | str) else json.loads(json.dumps(value, default=str))
