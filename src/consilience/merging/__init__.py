"""From recipe to plan to merged weights."""

from __future__ import annotations

from importlib import import_module
from typing import Any

_PUBLIC = {
    "Recipe": "consilience.merging.recipe",
    "load_recipe": "consilience.merging.recipe",
    "Plan": "consilience.merging.plan",
    "merge_state_dicts": "consilience.merging.memory",
}

__all__ = sorted(_PUBLIC)


def __getattr__(name: str) -> Any:
    if name in _PUBLIC:
        return getattr(import_module(_PUBLIC[name]), name)
    raise AttributeError(f"module 'consilience.merging' has no attribute {name!r}")
