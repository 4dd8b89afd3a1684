"""What a search gives back: hits, and how they came about."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from consilience.data.documents import Document
from consilience.retrieval.fusion import Origin

if TYPE_CHECKING:
    from consilience.retrieval.routing import Route

__all__ = ["Answer", "Hit"]


@dataclass(frozen=True)
class Hit:
    """A document that was found: its score, and by which stores.

    score: fused, or of the reranker where there is one; comparable within one answer only. found: store -> rank and
    score there. fused: rank and score before reranking, None without.
    """

    document: Document
    score: float
    found: Mapping[str, Origin] = field(default_factory=dict)
    fused: Origin | None = None

    @property
    def id(self) -> str:
        """The document's id."""
        return self.document.id

    def to_dict(self) -> dict[str, Any]:
        """Return the hit as plain data."""
        found = {name: {"rank": one.rank, "score": one.score} for name, one in self.found.items()}
        before = {} if self.fused is None else {"fused": {"rank": self.fused.rank, "score": self.fused.score}}
        return {"id": self.id, "score": self.score, "found": found, **before, "document": self.document.to_dict()}


@dataclass(frozen=True)
class Answer:
    """The hits of one query, and why they are what they are.

    weights: of the stores that were fused. seconds: what each step took, for all queries of the call. failed: stores
    that gave no answer, and why: the hits are of the others then. queries: what was searched for instead of the query,
    where it was expanded. route: what a router took the query for.
    """

    query: str
    hits: list[Hit]
    weights: Mapping[str, float] = field(default_factory=dict)
    seconds: Mapping[str, float] = field(default_factory=dict)
    failed: Mapping[str, str] = field(default_factory=dict)
    queries: tuple[str, ...] = ()
    route: Route | None = None

    @property
    def partial(self) -> bool:
        """Whether a store gave no answer."""
        return bool(self.failed)

    def to_dict(self) -> dict[str, Any]:
        """Return the answer as plain data."""
        found: dict[str, Any] = {"query": self.query, "hits": [hit.to_dict() for hit in self.hits]}
        for name in ("weights", "seconds", "failed"):
            if getattr(self, name):
                found[name] = dict(getattr(self, name))
        if self.queries:
            found["queries"] = list(self.queries)
        if self.route is not None:
            found["route"] = {"kind": self.route.kind, "confidence": self.route.confidence, "why": list(self.route.why)}
        return found
