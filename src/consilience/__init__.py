"""Consilience: turn many expert models into one better system, and prove it."""

from __future__ import annotations

from importlib import import_module
from typing import Any

__version__ = "0.1.0"

_PUBLIC = {
    "ConsilienceError": "consilience.errors",
    "Recipe": "consilience.merging",
    "Plan": "consilience.merging",
    "load_recipe": "consilience.merging",
    "merge_state_dicts": "consilience.merging",
    "methods": "consilience.merging.catalogue",
    "open_checkpoint": "consilience.checkpoints",
    "load_encoder": "consilience.models",
    "Suite": "consilience.data",
    "RetrievalData": "consilience.data",
    "evaluate": "consilience.bench",
    "train_encoder": "consilience.training",
    "gather_statistics": "consilience.tuning",
    "extract_adapter": "consilience.merging.extraction",
    "make_mixture": "consilience.bundles.mixture",
    "Bundle": "consilience.bundles.bundle",
    "create_bundle": "consilience.bundles.creation",
    "search_pareto": "consilience.tuning.pareto",
    "tune_recipe": "consilience.tuning.tune",
    "Document": "consilience.data.documents",
    "Index": "consilience.retrieval.index",
    "Searcher": "consilience.retrieval.searcher",
    "pipeline": "consilience.retrieval.pipelines",
}

__all__ = ["__version__", *sorted(_PUBLIC)]


def __getattr__(name: str) -> Any:
    if name in _PUBLIC:
        return getattr(import_module(_PUBLIC[name]), name)
    raise AttributeError(f"module 'consilience' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted(__all__)
