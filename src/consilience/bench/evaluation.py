"""The result of measuring models on a suite: per-query scores, and every number that follows from them."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
from numpy.typing import NDArray

from consilience.bench.bootstrap import RESAMPLES, Difference, interval, resampled_means
from consilience.core.atomic import write_text_atomic
from consilience.errors import DataError, WorkError, did_you_mean

if TYPE_CHECKING:
    from rich.table import Table

    from consilience.tuning.pareto import ParetoFront

__all__ = ["KINDS", "MEAN", "Evaluation", "Kind", "Row"]

Kind = Literal["base", "expert", "baseline", "candidate", "bundle", "oracle"]
KINDS: tuple[Kind, ...] = ("base", "expert", "baseline", "candidate", "bundle", "oracle")
MEAN = "mean"
_FORMAT, _VERSION = "consilience/evaluation", 1
_NAN = float("nan")


@dataclass(frozen=True)
class Row:
    """One model: per-query scores (0 to 1) by domain, what failed, what it cost, and what readers must know.

    `also` holds means (0 to 1) of further metrics: metric -> domain -> mean. `chosen` is the oracle's model per
    domain. `stamps` are warnings such as "transductive".
    """

    name: str
    kind: Kind
    scores: Mapping[str, tuple[float, ...]]
    failures: Mapping[str, str] = field(default_factory=dict)
    also: Mapping[str, Mapping[str, float]] = field(default_factory=dict)
    fingerprint: str = ""
    reference: str = ""
    seconds: float = 0.0
    encoded: int = 0
    reused: int = 0
    recipe: str | None = None
    stamps: tuple[str, ...] = ()
    chosen: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class Evaluation:
    """Rows (models) by columns (domains and their mean), with paired differences between any two rows.

    >>> evaluation = Evaluation(
    ...     suite={"name": "demo", "metric": "nDCG@10"}, split="test", base="base",
    ...     queries={"code": ("q1", "q2", "q3")}, documents={"code": 10},
    ...     rows=(Row("base", "base", {"code": (0.2, 0.4, 0.6)}), Row("ties", "candidate", {"code": (0.5, 0.6, 1.0)})),
    ... )
    >>> round(evaluation.value("ties", "code"), 1), round(evaluation.difference("ties").difference, 1)
    (70.0, 30.0)
    >>> Evaluation.from_json(evaluation.to_json()) == evaluation
    True

    Values and differences are points (score x 100). The mean is the mean of domain means, over the domains that did
    not fail; `failed(row)` counts the others. Intervals are 95 %, paired over queries, stratified by domain.
    """

    suite: Mapping[str, Any]
    split: str
    base: str
    queries: Mapping[str, tuple[str, ...]]
    documents: Mapping[str, int]
    rows: tuple[Row, ...]
    oracle_chosen_on: str | None = None
    resamples: int = RESAMPLES
    seed: int = 0
    provenance: Mapping[str, Any] = field(default_factory=dict)
    notes: tuple[str, ...] = ()

    @property
    def domains(self) -> tuple[str, ...]:
        """The measured domains, in the order of the suite."""
        return tuple(self.queries)

    @property
    def metric(self) -> str:
        """The compared metric."""
        return str(self.suite["metric"])

    @property
    def names(self) -> tuple[str, ...]:
        """The names of the rows."""
        return tuple(row.name for row in self.rows)

    def row(self, name: str) -> Row:
        """Return a row; raises DataError for an unknown name."""
        for row in self.rows:
            if row.name == name:
                return row
        raise DataError(f"evaluation: no row {name!r}{did_you_mean(name, self.names)}")

    def n(self, domain: str | None = None, name: str | None = None) -> int:
        """Return the number of queries of a domain, or of all; with `name`, only of those measured for that row."""
        domains = [domain] if domain else self.domains
        scored = self.domains if name is None else self.row(name).scores
        return sum(len(self.queries[key]) for key in domains if key in scored)

    def failed(self, name: str) -> int:
        """Return the number of domains in which a row could not be measured."""
        return len(self.row(name).failures)

    def value(self, name: str, domain: str | None = None) -> float:
        """Return the score in points of a row in a domain, or in the mean; nan where nothing was measured."""
        scores = self.row(name).scores
        chosen = [domain] if domain else list(self.domains)
        values = [float(np.mean(scores[key])) for key in chosen if key in scores]
        return 100 * float(np.mean(values)) if values else _NAN

    def difference(self, name: str, domain: str | None = None, *, to: str | None = None) -> Difference:
        """Return the points a row gains over another one (the base), paired, in a domain or in the mean.

        Only domains measured for both count. nan without any.
        """
        first, second = self.row(name), self.row(to or self.base)
        chosen = [domain] if domain else list(self.domains)
        common = [key for key in chosen if key in first.scores and key in second.scores]
        count = sum(self.n(key) for key in common)
        if not common:
            return Difference(_NAN, _NAN, _NAN, 0)
        i, j = self.names.index(first.name), self.names.index(second.name)
        centre = np.mean([np.mean(first.scores[key]) - np.mean(second.scores[key]) for key in common])
        if count < 2:
            return Difference(100 * float(centre), _NAN, _NAN, count)
        samples = np.mean([self._resampled[key][:, i] - self._resampled[key][:, j] for key in common], axis=0)
        low, high = interval(100 * samples)
        return Difference(100 * float(centre), low, high, count)

    @cached_property
    def _resampled(self) -> dict[str, NDArray[np.float64]]:
        means = {}
        for domain in self.domains:
            missing = (_NAN,) * self.n(domain)
            values = np.array([row.scores.get(domain, missing) for row in self.rows], np.float64).T
            means[domain] = resampled_means(values, name=domain, resamples=self.resamples, seed=self.seed)
        return means

    def best(self, kinds: Sequence[Kind], domain: str | None = None) -> str | None:
        """Return the name of the row of these kinds with the highest score, the first one on ties.

        In the mean, rows with failed domains count only when there are no others: their means are not comparable.
        """
        rows = [row for row in self.rows if row.kind in kinds]
        if domain is None:
            rows = [row for row in rows if not row.failures] or rows
        values = {row.name: self.value(row.name, domain) for row in rows}
        known = {name: value for name, value in values.items() if not math.isnan(value)}
        return max(known, key=known.__getitem__) if known else None

    def claim(self) -> str:
        """Return the result in one sentence, with interval, n and failures; no better and no worse than it is."""
        kinds: tuple[Kind, ...] = ("candidate", "bundle", "baseline", "expert")
        name = next((found for kind in kinds if (found := self.best((kind,)))), None)
        if name is None:
            return f"{self.base} scores {self.value(self.base):.1f} {self.metric}; there is nothing to compare it with."
        gain = self.difference(name)
        if not gain.excludes_zero:
            verdict = "does not differ measurably from"
        else:
            verdict = "beats" if gain.difference > 0 else "falls behind"
        many = sum(row.kind == "candidate" for row in self.rows)
        among = f" (best of {many} candidates on this split)" if many > 1 and self.row(name).kind == "candidate" else ""
        where = f"in the mean of {len(self.domains)} domains" if len(self.domains) > 1 else f"on {self.domains[0]}"
        sentence = (
            f"{name}{among} {verdict} {self.base} {where}: {self.value(name):.1f} against "
            f"{self.value(self.base):.1f} {self.metric}, a difference of {gain.difference:+.1f} points "
            f"(95 % interval {gain.low:+.1f} to {gain.high:+.1f}, n = {gain.n} queries, {self.failed(name)} failures)"
        )
        words: tuple[tuple[Kind, str], ...] = (("expert", "the best single expert"), ("bundle", "the routed bundle"))
        for kind, what in words:
            other = self.best((kind,))
            if other is not None and other != name:
                sentence += f"; {what}, {other}, scores {self.value(other):.1f}"
        return sentence + "."

    def summary(self) -> dict[str, Any]:
        """Return every number of the table as plain data: values, differences to the base with intervals, n."""
        return {
            row.name: {
                "kind": row.kind,
                "failures": len(row.failures),
                **{
                    domain or MEAN: {
                        "value": _number(self.value(row.name, domain)),
                        "n": self.n(domain, row.name),
                        **{
                            f"{part}_to_base" if part == "difference" else part: _number(number)
                            for part, number in self.difference(row.name, domain)._asdict().items()
                            if part != "n"
                        },
                    }
                    for domain in (*self.domains, None)
                },
            }
            for row in self.rows
        }

    def to_json(self) -> str:
        """Return everything as JSON: the per-query scores and, under `table`, what follows from them."""
        content = {"format": _FORMAT, "version": _VERSION, "claim": self.claim(), "table": self.summary()}
        return json.dumps(content | asdict(self), indent=1, ensure_ascii=False, allow_nan=False)

    @staticmethod
    def from_json(text: str) -> Evaluation:
        """Read what `to_json` wrote; raises DataError for anything else."""
        try:
            content = json.loads(text)
        except ValueError as error:
            raise DataError(f"evaluation: not valid JSON ({error})") from error
        if not isinstance(content, dict) or content.get("format") != _FORMAT:
            raise DataError(f"evaluation: a JSON object with the format {_FORMAT!r} is expected")
        if content.get("version") != _VERSION:
            raise DataError(f"evaluation: format version {content.get('version')!r}; this program reads {_VERSION}")
        try:
            rows = tuple(
                Row(
                    **row
                    | {
                        "scores": {key: tuple(scores) for key, scores in row["scores"].items()},
                        "stamps": tuple(row["stamps"]),
                    }
                )
                for row in content["rows"]
            )
            known = {key: content[key] for key in Evaluation.__dataclass_fields__}
            queries = {key: tuple(ids) for key, ids in content["queries"].items()}
            return Evaluation(**known | {"rows": rows, "queries": queries, "notes": tuple(content["notes"])})
        except (KeyError, TypeError, AttributeError) as error:
            raise DataError(f"evaluation: incomplete or damaged record ({error!r})") from error

    def to_table(self, *, to: str | None = None) -> Table:
        """Return the rich table: values, differences to the base (or to another row), * where 0 is excluded."""
        from consilience.bench.table import build_table

        return build_table(self, to=to)

    def to_html(
        self,
        path: str | Path | None = None,
        *,
        title: str = "Consilience: evaluation",
        fronts: Sequence[ParetoFront] = (),
    ) -> str:
        """Return the report as one self-contained page, with Pareto `fronts`; with `path`, write it there too."""
        from consilience.bench.report import render

        page = render(self, title=title, fronts=fronts)
        if path is not None:
            target = Path(path)
            try:
                target.parent.mkdir(parents=True, exist_ok=True)
            except OSError as error:
                raise WorkError(f"report {target}: its folder cannot be made ({error.strerror})") from error
            write_text_atomic(target, page)
        return page


def _number(value: float) -> float | None:
    return None if math.isnan(value) else value
