"""One table of everything that can be made of retrieval experts: merges, learners, a bundle with a router, the oracle.

Domains without an expert are measured, too: they show what a merge forgets and what a router spoils.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from consilience.bench.experiments.retrieval import RetrievalExperts
from consilience.bench.experiments.scores import Paired, Scores, compare
from consilience.bench.routing import RoutingData
from consilience.bundles.routers.protocol import BASE
from consilience.core.atomic import write_text_atomic
from consilience.core.hashing import fingerprint, xxh3_hex
from consilience.core.randomness import draw_some
from consilience.data import Suite

if TYPE_CHECKING:
    from torch import Tensor

    from consilience.bundles.routers.protocol import Router

__all__ = ["CompositionRow", "KeptScores", "oracle_scores", "routed_scores", "summarise"]


class KeptScores(RetrievalExperts):
    """Retrieval experts whose scores are kept in a folder, by the weights that were measured: a second run reads them.

    The domains of the suite are measured, with an expert or without.
    """

    def __init__(
        self,
        suite: Suite,
        base: str | Path,
        experts: Mapping[str, str | Path],
        *,
        dev: Suite,
        folder: str | Path,
    ) -> None:
        super().__init__(suite, base, experts, dev=dev)
        self.folders = {task: Path(expert) for task, expert in experts.items()}
        self._folder = Path(folder)
        self._suites = {"test": suite, "dev": dev}
        self._described = {split: one.describe() for split, one in self._suites.items()}

    @property
    def domains(self) -> tuple[str, ...]:
        """All domains that are measured."""
        return tuple(self.suite.domains)

    def queries(self, split: str) -> dict[str, tuple[str, ...]]:
        """Return the queries that are measured, domain by domain."""
        drawn = self._suites[split].evaluation_sets(split=split)
        return {domain: tuple(one.queries) for domain, one in drawn.items()}

    def examples(self, task: str, count: int) -> Sequence[tuple[str, str]]:
        """Return (query, relevant document) of training queries drawn at random, none of them held out anywhere."""
        pairs = self.suite.training_pairs(task).pairs()
        return draw_some(pairs, count, 0, "composition", task)

    def scores(self, state: Mapping[str, Tensor], task: str, split: str) -> NDArray[np.float64]:
        """Return nDCG@10 of each query of a domain, measured once for the same weights."""
        weights = {name: xxh3_hex(value.contiguous().numpy()) for name, value in state.items()}
        key = fingerprint({"suite": self._described[split], "task": task, "split": split, "weights": weights})
        place = self._folder / f"{task}-{split}-{key[:20]}.json"
        if not place.is_file():
            found = super().scores(state, task, split)
            self._folder.mkdir(parents=True, exist_ok=True)
            write_text_atomic(place, json.dumps(found.tolist()))
        return np.array(json.loads(place.read_text()))


@dataclass(frozen=True)
class CompositionRow:
    """A line of the table.

    kind: "base", "expert", "merge", "learner", "bundle" or "oracle". seconds, peak_bytes: of making it; what is chosen
    on dev is in `chosen`, with the number of evaluations that took.
    """

    name: str
    kind: str
    scores: Scores = field(repr=False)
    seconds: float | None = None
    peak_bytes: int | None = None
    chosen: Mapping[str, Any] = field(default_factory=dict)
    trials: int = 0
    notices: tuple[str, ...] = ()


def oracle_scores(experts: Mapping[str, Scores], base: Scores) -> Scores:
    """Return the scores of every domain's own expert, and of the base where there is none."""
    found = {domain: experts.get(domain, base).by_example[domain] for domain in base.by_example}
    return Scores(found)


def routed_scores(router: Router, data: RoutingData) -> Scores:
    """Return the scores under the models that a router chooses, domain by domain."""
    return Scores(data.by_domain(data.routed(router)))


def summarise(
    rows: Sequence[CompositionRow], experts: Sequence[str], *, reference: str, oracle: str = "oracle"
) -> list[dict[str, Any]]:
    """Return the table as plain data: means over domains with an expert and without, differences, share of the oracle.

    reference: the row that merges are compared with (tuned task arithmetic). Differences have 95 % intervals, paired
    by query. share: of (oracle - base) over the domains with an expert.
    """
    by = {row.name: row for row in rows}
    base = by[BASE].scores
    others = [domain for domain in base.by_example if domain not in experts]
    ceiling = compare(by[oracle].scores.only(experts), base.only(experts)).difference
    found = []
    for row in rows:
        own = row.scores.only(experts)
        line: dict[str, Any] = {
            "name": row.name,
            "kind": row.kind,
            "domains": row.scores.by_task,
            "with_expert": own.mean,
            "against_base": _plain(compare(own, base.only(experts))),
            "against_reference": _plain(compare(own, by[reference].scores.only(experts))),
            "share": (own.mean - base.only(experts).mean) / ceiling if ceiling else None,
            "seconds": row.seconds,
            "peak_bytes": row.peak_bytes,
            "chosen": dict(row.chosen),
            "trials": row.trials,
            "notices": list(row.notices),
        }
        if others:
            line["without_expert"] = row.scores.only(others).mean
            line["without_against_base"] = _plain(compare(row.scores.only(others), base.only(others)))
        found.append(line)
    return found


def _plain(found: Paired) -> dict[str, Any]:
    return {"difference": found.difference, "low": found.low, "high": found.high, "n": found.n}
