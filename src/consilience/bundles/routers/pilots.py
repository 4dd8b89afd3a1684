"""Pilots: a small library of vectors, each labelled with the expert that is best around it; no training.

Every training query is labelled with its best expert. Within each dataset the queries of one label give k centroids of
their base vectors, the pilots of that expert. An input goes to the expert whose pilots are most similar: in the mean
(rule "mean", the paper's), or by its single nearest pilot (rule "max", the authors' code; on some data the two disagree
for half of the queries).

Source: Lee et al. 2025, RouterRetriever, arXiv 2409.02685; code amy-hyunji/RouterRetriever.
"""

from __future__ import annotations

import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, ClassVar, Literal, get_args

import numpy as np
from numpy.typing import NDArray

from consilience.bundles.routers.protocol import BASE, Features, Router, checked_features, read_arrays, write_arrays
from consilience.core.records import read_record, write_record
from consilience.errors import Problems, RequestError, did_you_mean

__all__ = ["KIND", "PilotLibrary", "PilotRouter"]

Rule = Literal["mean", "max"]
Similarity = Literal["dot", "cosine"]
Tie = Literal["first", "drop"]
_NORMS = 3.0
_FORMAT = "pilot-library"
_VERSION = 1
_FILE = "library.safetensors"


class PilotRouter(Router):
    """Routes to the expert of the most similar pilots.

    >>> router = PilotRouter(np.eye(2), ["law", "health"], ["law", "health"], similarity="cosine", threshold=0.5)
    >>> router.route(np.array([[3.0, 1.0], [-1.0, -1.0]])).chosen
    ('law', 'base')

    pilots: (pilots, dimension); owners: the expert of each, or "base". experts: all that are served; one without
    pilots is never chosen. rule: "mean" or "max". similarity: "dot" or "cosine". Confidence is the best similarity.

    Raises RequestError for unknown owners, a vector of zeros with "cosine", or NaN.
    """

    kind: ClassVar[str] = "pilots"

    def __init__(
        self,
        pilots: Features,
        owners: Sequence[str],
        experts: Sequence[str],
        *,
        rule: Rule = "mean",
        similarity: Similarity = "dot",
        threshold: float | None = None,
    ) -> None:
        self.pilots = np.asarray(checked_features(pilots), np.float32)
        super().__init__(experts, self.pilots.shape[1], threshold)
        self.owners = tuple(owners)
        self.rule, self.similarity = rule, similarity
        problems = Problems()
        if len(self.owners) != len(self.pilots) or not len(self.pilots):
            problems.add(
                f"{len(self.pilots)} pilots with {len(self.owners)} owners; give one owner for each, at least 1"
            )
        for owner in dict.fromkeys(self.owners):
            if owner not in self.names:
                problems.add(f"a pilot belongs to {owner!r}, which is no expert here{did_you_mean(owner, self.names)}")
        if rule not in get_args(Rule):
            problems.add(f"rule: {rule!r} is not one of {', '.join(get_args(Rule))}")
        if similarity not in get_args(Similarity):
            problems.add(f"similarity: {similarity!r} is not one of {', '.join(get_args(Similarity))}")
        norms = np.linalg.norm(self.pilots, axis=1)
        if not (norms > 0).all():
            problems.add(f"pilot {int(np.flatnonzero(norms == 0)[0])} is a vector of zeros")
        problems.raise_if_any(RequestError, "pilots")
        if similarity == "dot" and norms.max() > _NORMS * norms.min():
            warnings.warn(
                f"pilots: the longest is {norms.max() / norms.min():.1f} times as long as the shortest, and dot "
                "products favour long ones; use similarity 'cosine'",
                stacklevel=2,
            )
        silent = [name for name in self.experts if name not in self.owners]
        if silent:
            warnings.warn(f"pilots: no pilot belongs to {', '.join(silent)}: never chosen", stacklevel=2)

    def similarities(self, features: Features) -> NDArray[np.float64]:
        """Return the similarity of inputs to experts and base, (inputs, experts + 1); -inf where there is no pilot."""
        vectors, pilots = checked_features(features, self.dimension), self.pilots.astype(np.float64)
        if self.similarity == "cosine":
            vectors, pilots = _unit(vectors), _unit(pilots)
        similar = vectors @ pilots.T
        found = np.full((len(vectors), len(self.names)), -np.inf)
        for place, name in enumerate(self.names):
            own = np.array([owner == name for owner in self.owners])
            if own.any():
                found[:, place] = similar[:, own].mean(axis=1) if self.rule == "mean" else similar[:, own].max(axis=1)
        return found

    def scores(self, features: Features) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        """Return one name per input, and its similarity."""
        found = self.similarities(features)
        weights = np.zeros_like(found)
        weights[np.arange(len(found)), found.argmax(axis=1)] = 1.0
        return weights, found.max(axis=1)

    def without(self, expert: str) -> PilotRouter:
        """Return the router without an expert: its pilots are dropped, the others stay as they are.

        `PilotLibrary.without` labels its queries anew, which is exact and needs the library.
        """
        if expert not in self.experts:
            raise RequestError(f"pilots: no expert {expert!r}{did_you_mean(expert, self.experts)}")
        kept = [place for place, owner in enumerate(self.owners) if owner != expert]
        return PilotRouter(
            self.pilots[kept],
            [self.owners[place] for place in kept],
            [name for name in self.experts if name != expert],
            rule=self.rule,
            similarity=self.similarity,
            threshold=self.threshold,
        )

    def arrays(self) -> dict[str, NDArray[Any]]:
        """Return the pilots."""
        return {"pilots": self.pilots}

    def settings(self) -> dict[str, Any]:
        """Return owners, rule and similarity."""
        return {"owners": list(self.owners), "rule": self.rule, "similarity": self.similarity}

    @classmethod
    def restore(
        cls, experts: Sequence[str], threshold: float | None, settings: Mapping[str, Any], arrays: Mapping[str, Any]
    ) -> PilotRouter:
        """Return the router that was saved."""
        return cls(
            arrays["pilots"],
            settings["owners"],
            experts,
            rule=settings["rule"],
            similarity=settings["similarity"],
            threshold=threshold,
        )


KIND = PilotRouter


def _unit(vectors: NDArray[np.float64]) -> NDArray[np.float64]:
    lengths = np.linalg.norm(vectors, axis=1, keepdims=True)
    if not (lengths > 0).all():
        raise RequestError(f"router: the vector of input {int(np.flatnonzero(lengths == 0)[0])} is all zeros")
    found: NDArray[np.float64] = vectors / lengths
    return found


@dataclass(frozen=True)
class PilotLibrary:
    """What pilots are made of: training inputs, their datasets, and how every expert scores on each.

    >>> library = PilotLibrary(
    ...     np.array([[1.0, 0.0], [0.8, 0.2], [0.0, 1.0]]),
    ...     ("laws", "laws", "illnesses"),
    ...     {"law": np.array([0.9, 0.8, 0.1]), "health": np.array([0.2, 0.8, 0.7])},
    ... )
    >>> library.router().owners
    ('law', 'health')

    features: base vectors (inputs, dimension). scores: expert -> (inputs,), higher is better, such as nDCG@10; "base"
    may be one of them: its pilots say where no expert is needed.
    """

    features: Features
    datasets: tuple[str, ...]
    scores: Mapping[str, NDArray[np.float64]]

    def __post_init__(self) -> None:
        count = len(checked_features(self.features))
        problems = Problems()
        for name, found in {"datasets": self.datasets, **self.scores}.items():
            if len(found) != count:
                problems.add(f"{name}: {len(found)} values for {count} inputs")
        for name, found in self.scores.items():
            if not np.isfinite(np.asarray(found, np.float64)).all():
                problems.add(f"scores of {name!r}: NaN or infinity")
        if not count or not [name for name in self.scores if name != BASE]:
            problems.add(f"{count} inputs and scores of {', '.join(self.scores) or 'nobody'}; both are needed")
        problems.raise_if_any(RequestError, "pilot library")

    @property
    def experts(self) -> tuple[str, ...]:
        """The experts, in the order of the scores."""
        return tuple(name for name in self.scores if name != BASE)

    def labels(self, tie: Tie = "first") -> list[str | None]:
        """Return the best expert of every input, the first of equal ones; None where tie="drop" leaves it out."""
        table = np.stack([np.asarray(self.scores[name], np.float64) for name in self.scores])
        best = [tuple(self.scores)[place] for place in table.argmax(axis=0)]
        if tie not in get_args(Tie):
            raise RequestError(f"tie: {tie!r} is not one of {', '.join(get_args(Tie))}")
        equal = (table == table[0]).all(axis=0) if tie == "drop" else np.zeros(len(best), np.bool_)
        return [None if drop else name for name, drop in zip(best, equal, strict=True)]

    def router(
        self,
        k: int | None = 1,
        *,
        rule: Rule = "mean",
        similarity: Similarity = "dot",
        tie: Tie = "first",
        threshold: float | None = None,
        seed: int = 0,
    ) -> PilotRouter:
        """Make the pilots and the router.

        k: centroids of every group (of one dataset and one label), by k-means from 2 on; a smaller group gives as many
        as it has inputs. None: every input is a pilot (with rule "max": the nearest training input). tie: what becomes
        of inputs on which all experts score the same.
        """
        if k is not None and k < 1:
            raise RequestError(f"k: {k} centroids of every group were asked for; use 1 or more")
        labels = self.labels(tie)
        features = checked_features(self.features)
        pilots: list[NDArray[np.float64]] = []
        owners: list[str] = []
        for name in self.scores:
            for dataset in dict.fromkeys(self.datasets):
                pairs = zip(labels, self.datasets, strict=True)
                rows = [row for row, pair in enumerate(pairs) if pair == (name, dataset)]
                if rows:
                    made = features[rows] if k is None else _centroids(features[rows], min(k, len(rows)), seed)
                    pilots.append(made)
                    owners += [name] * len(made)
        if not pilots:
            raise RequestError("pilot library: every input was left out, as all experts score the same on all of them")
        return PilotRouter(
            np.concatenate(pilots), owners, self.experts, rule=rule, similarity=similarity, threshold=threshold
        )

    def with_expert(self, name: str, scores: NDArray[np.float64]) -> PilotLibrary:
        """Return the library with one more expert, by its scores on the same inputs."""
        if name in self.scores:
            raise RequestError(f"pilot library: {name!r} is there already")
        return replace(self, scores={**self.scores, name: np.asarray(scores, np.float64)})

    def without(self, name: str) -> PilotLibrary:
        """Return the library without an expert; its inputs are labelled anew."""
        if name not in self.scores:
            raise RequestError(f"pilot library: no expert {name!r}{did_you_mean(name, self.scores)}")
        return replace(self, scores={other: found for other, found in self.scores.items() if other != name})

    def save(self, folder: str | Path) -> None:
        """Write the library to a folder, so that experts can be added later."""
        names = list(dict.fromkeys(self.datasets))
        arrays: dict[str, NDArray[Any]] = {
            "features": np.asarray(self.features, np.float32),
            "datasets": np.array([names.index(dataset) for dataset in self.datasets], np.int64),
            **{f"scores.{name}": np.asarray(found, np.float64) for name, found in self.scores.items()},
        }
        checksums = write_arrays(Path(folder), _FILE, arrays)
        record = {"datasets": names, "experts": list(self.scores), "tensors": checksums}
        write_record(Path(folder) / "library.json", _FORMAT, _VERSION, record)

    @classmethod
    def open(cls, folder: str | Path) -> PilotLibrary:
        """Read what `save` wrote. Raises RequestError where it is something else, or damaged."""
        record = read_record(Path(folder) / "library.json", _FORMAT, _VERSION)
        arrays = read_arrays(Path(folder) / _FILE, record["tensors"])
        datasets = tuple(record["datasets"][place] for place in arrays["datasets"])
        return cls(arrays["features"], datasets, {name: arrays[f"scores.{name}"] for name in record["experts"]})


def _centroids(vectors: NDArray[np.float64], k: int, seed: int) -> NDArray[np.float64]:
    if k == 1:
        mean: NDArray[np.float64] = vectors.mean(axis=0, keepdims=True)
        return mean
    from sklearn.cluster import KMeans  # type: ignore[import-untyped]

    found: NDArray[np.float64] = KMeans(n_clusters=k, n_init=10, random_state=seed).fit(vectors).cluster_centers_
    return found
