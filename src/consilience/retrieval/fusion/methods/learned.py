"""Learned: weights, or a logistic model over scores and ranks, fitted to development queries with judgements.

    weights:   as `weighted`, with the weights that had the best metric on the development queries
    logistic:  score(d) = P(relevant | for every list: min-max score, 61 / (60 + rank), whether it has d)

Use: some dozens of judged queries of the same kind as those to come.
Avoid: judgements of other users or another collection; measure on held-out queries before using it.

Source: weights by search on the simplex; the logistic model: Savoy, Le Calve and Vrajitoru 1996.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from consilience.errors import RecipeError
from consilience.retrieval.fusion.learning import LearnedFusion
from consilience.retrieval.fusion.protocol import Fused, Ranking


def learned(
    rankings: Sequence[Ranking],
    *,
    weights: Sequence[float] | None = None,
    names: Sequence[str],
    model: LearnedFusion | str | Path,
) -> Fused:
    """Return keys by a fitted model.

    >>> model = LearnedFusion("weights", ("vector", "text"), (0.25, 0.75))
    >>> learned([[("a", 0.9), ("b", 0.1)], [("b", 7.0)]], names=["vector", "text"], model=model)
    [('b', 0.75), ('a', 0.25)]

    names: the names of the lists; a list that the model was fitted with and that is not here counts as empty. model:
    what `fit_fusion` returned, or the file it was saved to. weights: not taken, the model has its own.

    Raises RecipeError for weights, and for a list that the model does not know; DataError for a file it cannot read.
    """
    if weights is not None:
        raise RecipeError("fusion by 'learned': the model has weights of its own; leave `weights` away")
    fitted = model if isinstance(model, LearnedFusion) else LearnedFusion.load(model)
    return fitted.fuse(dict(zip(names, rankings, strict=True)))
