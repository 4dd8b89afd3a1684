"""Fusion fitted to judged queries: weights per list, or a logistic model; saved as plain JSON."""

from __future__ import annotations

import json
import math
from collections.abc import Hashable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from itertools import permutations
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from consilience.core.atomic import write_text_atomic
from consilience.data.metrics import Metric, measure
from consilience.errors import DataError, MissingExtraError, RecipeError, did_you_mean
from consilience.retrieval.fusion.protocol import Fused, Key, Ranking, best_first, normalised

__all__ = ["LearnedFusion", "fit_fusion"]

Kind = Literal["weights", "logistic"]

_FORMAT, _VERSION = "consilience fusion", 1
_STEPS = (0.2, 0.1, 0.05)
_FEATURES = 3  # of a list: score, rank, presence


@dataclass(frozen=True)
class LearnedFusion:
    """A fitted fusion.

    >>> model = LearnedFusion("weights", ("vector", "text"), (0.25, 0.75))
    >>> model.fuse({"vector": [("a", 0.9), ("b", 0.1)], "text": [("b", 7.0)]})
    [('b', 0.75), ('a', 0.25)]

    kind: "weights" or "logistic". lists: their names. values: a weight per list, or three coefficients per list
    (min-max score, 61 / (60 + rank), presence). intercept: of the logistic model. fitted: the metric, the number of
    queries, and the metric on those queries of this model, of equal weights and of every list alone.
    """

    kind: Kind
    lists: tuple[str, ...]
    values: tuple[float, ...]
    intercept: float = 0.0
    fitted: Mapping[str, Any] = field(default_factory=dict)

    def fuse(self, rankings: Mapping[str, Ranking]) -> Fused:
        """Return one ranking, best first; scores are 0 to 1. Raises RecipeError for a list the model does not know."""
        for name in rankings:
            if name not in self.lists:
                raise RecipeError(
                    f"the fitted fusion knows no list {name!r}{did_you_mean(name, self.lists)}; fit it with that list"
                )
        keys, features = _features([rankings.get(name, ()) for name in self.lists])
        scores, alive = self._scores(features)
        return best_first({k: float(s) for k, s, a in zip(keys, scores, alive, strict=True) if a})

    def _scores(self, features: NDArray[np.float64]) -> tuple[NDArray[np.float64], NDArray[np.bool_]]:
        """Return the score of every key, and whether a list that counts has it; features are (keys, lists, 3)."""
        values = np.array(self.values)
        if self.kind == "weights":
            return features[:, :, 0] @ values, features[:, values > 0, 2].max(axis=1, initial=0.0) > 0
        logits = features.reshape(len(features), -1) @ values + self.intercept
        return np.exp(-np.logaddexp(0.0, -logits)), np.ones(len(features), np.bool_)

    def save(self, path: str | Path) -> None:
        """Write the model as JSON, whole or not at all."""
        facts = {"format": _FORMAT, "version": _VERSION, **asdict(self)}
        write_text_atomic(Path(path), json.dumps(facts, indent=1, ensure_ascii=False) + "\n")

    @staticmethod
    def load(path: str | Path) -> LearnedFusion:
        """Read a saved model. Raises DataError where the file is not one."""
        try:
            facts = json.loads(Path(path).read_text("utf-8"))
        except FileNotFoundError:
            raise DataError(f"{path}: no such file; save a fitted fusion there first") from None
        except (OSError, ValueError) as error:
            raise DataError(f"{path}: not a saved fusion ({error})") from None
        if not isinstance(facts, dict) or facts.pop("format", None) != _FORMAT:
            raise DataError(f"{path}: not a saved fusion; it does not say format {_FORMAT!r}")
        if (version := facts.pop("version", None)) != _VERSION:
            raise DataError(f"{path}: a fusion of version {version!r}; this program reads version {_VERSION}")
        kind: Any = facts.get("kind")
        names, values, intercept = (facts.get(part) for part in ("lists", "values", "intercept"))
        per_list = {"weights": 1, "logistic": _FEATURES}.get(kind, 0) if isinstance(kind, str) else 0
        if (
            not (isinstance(names, list) and isinstance(values, list))
            or not len(values) == per_list * len(names) > 0
            or not all(isinstance(number, int | float) and math.isfinite(number) for number in (*values, intercept))
            or (kind == "weights" and not min(values) >= 0 < max(values))
        ):
            raise DataError(f"{path}: a damaged fusion: kind {kind!r}, lists {names!r}, values {values!r}")
        return LearnedFusion(kind, tuple(names), tuple(values), facts["intercept"], facts.get("fitted") or {})


def fit_fusion(
    queries: Mapping[Hashable, Mapping[str, Ranking]],
    qrels: Mapping[Hashable, Mapping[Key, float]],
    *,
    kind: Kind = "weights",
    metric: str = "nDCG@10",
    regularisation: float = 1.0,
) -> LearnedFusion:
    """Fit a fusion to development queries with judgements.

    >>> lists = {"vector": [("a", 0.9), ("b", 0.8)], "text": [("b", 7.0), ("a", 1.0)]}
    >>> fit_fusion({"q": lists}, {"q": {"b": 1}}, metric="MRR@10").fitted["learned"]
    1.0

    queries: query -> list name -> ranking; a list that a query does not have counts as empty. qrels: query -> key ->
    whole grade, above 0 for relevant; queries without a relevant key are left out. kind: "weights" looks for the
    weights with the best metric (a grid of steps of 0.05 for two lists, moves of weight between pairs of lists for
    more; of equally good ones the most equal), "logistic" maximises the likelihood of relevance, every query counting
    the same. regularisation: strength of the logistic model's L2 penalty. The same input gives the same model.

    Raises DataError where no query has a relevant key, RecipeError for an unknown kind, MissingExtraError.
    """
    if kind not in ("weights", "logistic"):
        raise RecipeError(f"kind: {kind!r} is unknown{did_you_mean(kind, ('weights', 'logistic'))}")
    if not regularisation > 0:
        raise RecipeError(f"regularisation: {regularisation!r} is not a number above 0")
    names = tuple(dict.fromkeys(name for rankings in queries.values() for name in rankings))
    dev = _Development(names, queries, qrels, Metric.parse(metric))
    equal = LearnedFusion("weights", names, (1 / len(names),) * len(names))
    model = _search(dev, equal) if kind == "weights" else _logistic(dev, names, regularisation)
    fitted = {
        "metric": str(dev.metric),
        "queries": len(dev.features),
        "learned": dev.score(model),
        "equal_weights": dev.score(equal),
        "lists": {name: dev.score(_alone(names, name)) for name in names},
    }
    return LearnedFusion(model.kind, names, model.values, model.intercept, fitted)


class _Development:
    """The judged queries as arrays: features (keys, lists, 3), and relevance by position."""

    def __init__(
        self,
        names: Sequence[str],
        queries: Mapping[Hashable, Mapping[str, Ranking]],
        qrels: Mapping[Hashable, Mapping[Key, float]],
        metric: Metric,
    ) -> None:
        self.metric = metric
        self.features: list[NDArray[np.float64]] = []
        self.judged: list[dict[int, float]] = []
        for query, rankings in queries.items():
            relevant = {key: grade for key, grade in qrels.get(query, {}).items() if grade > 0}
            if not relevant:
                continue
            for key, grade in relevant.items():
                if grade % 1 != 0:
                    raise DataError(f"query {query!r}: grade {grade!r} of {key!r}; grades are whole numbers")
            keys, features = _features([rankings.get(name, ()) for name in names])
            places = {key: place for place, key in enumerate(keys)}
            for key in relevant:  # what no list has found still counts in the ideal ranking
                places.setdefault(key, len(places))
            self.features.append(features)
            self.judged.append({places[key]: grade for key, grade in relevant.items()})
        if not self.features:
            raise DataError(
                f"none of {len(queries)} queries has a relevant key in the judgements of {len(qrels)}; "
                "fusion is fitted to judged queries, and both must use the same query ids"
            )
        if not any(place < len(f) for f, judged in zip(self.features, self.judged, strict=True) for place in judged):
            raise DataError("no list has found a relevant key for any query; both must use the same keys")

    def score(self, model: LearnedFusion) -> float:
        """Return the mean of the metric over the queries."""
        ranking = np.full((len(self.features), self.metric.cutoff), -1, np.int64)
        for row, features in zip(ranking, self.features, strict=True):
            scores, alive = model._scores(features)
            order = np.argsort(-np.where(alive, scores, -np.inf), kind="stable")[: min(len(row), int(alive.sum()))]
            row[: len(order)] = order
        return float(measure([self.metric], ranking, self.judged)[self.metric].mean())


def _features(rankings: Sequence[Ranking]) -> tuple[list[Key], NDArray[np.float64]]:
    """Return the keys in the order in which they are met, and their features, (keys, lists, 3)."""
    keys = list(dict.fromkeys(key for ranking in rankings for key, _ in ranking))
    places = {key: place for place, key in enumerate(keys)}
    features = np.zeros((len(keys), len(rankings), _FEATURES))
    for column, ranking in enumerate(rankings):
        for rank, (key, value) in enumerate(normalised(ranking), start=1):
            features[places[key], column] = (value, 61 / (60 + rank), 1.0)
    return keys, features


def _alone(names: Sequence[str], name: str) -> LearnedFusion:
    return LearnedFusion("weights", tuple(names), tuple(float(other == name) for other in names))


def _search(dev: _Development, equal: LearnedFusion) -> LearnedFusion:
    """Return the best weights; of equally good ones those nearest to equal ones."""
    names, count = equal.lists, len(equal.lists)
    seen: dict[tuple[float, ...], float] = {}

    def value(weights: tuple[float, ...]) -> tuple[float, float]:
        if weights not in seen:
            seen[weights] = dev.score(LearnedFusion("weights", names, weights))
        return seen[weights], -sum((w - 1 / count) ** 2 for w in weights)

    if count == 2:
        grid: list[tuple[float, ...]] = [(i / 20, 1 - i / 20) for i in range(21)]
        best = max(grid, key=value)
    else:
        best = max([equal.values, *(_alone(names, name).values for name in names)], key=value)
        for step in _STEPS:
            while True:
                moves = [_moved(best, i, j, step) for i, j in permutations(range(count), 2) if best[i] > 0]
                nearest = max(moves, key=value, default=best)
                if value(nearest) <= value(best):
                    break
                best = nearest
    return LearnedFusion("weights", names, best)


def _moved(weights: tuple[float, ...], source: int, target: int, step: float) -> tuple[float, ...]:
    """Return the weights with a step, or what is left of it, moved from one list to another."""
    moved = list(weights)
    amount = min(step, moved[source])
    moved[source] = round(moved[source] - amount, 12)
    moved[target] = round(moved[target] + amount, 12)
    return tuple(moved)


def _logistic(dev: _Development, names: tuple[str, ...], regularisation: float) -> LearnedFusion:
    try:
        from sklearn.linear_model import LogisticRegression  # type: ignore[import-untyped]
    except ImportError:
        raise MissingExtraError("sklearn", "bench") from None
    labels, shares = [], []
    for features, judged in zip(dev.features, dev.judged, strict=True):
        label = np.zeros(len(features), np.int64)
        label[[place for place in judged if place < len(features)]] = 1
        labels.append(label)
        shares.append(np.full(len(features), 1 / max(len(features), 1)))
    if min(label.min(initial=1) for label in labels) == 1:
        raise DataError("every key of every list is judged relevant; a logistic model needs some that are not")
    weight = np.concatenate(shares)
    model = LogisticRegression(C=1 / regularisation, tol=1e-8, max_iter=5000)
    model.fit(
        np.concatenate(dev.features).reshape(len(weight), -1),
        np.concatenate(labels),
        sample_weight=weight * len(weight) / weight.sum(),
    )
    values = tuple(float(value) for value in model.coef_[0])
    return LearnedFusion("logistic", names, values, float(model.intercept_[0]))
