"""Adapters merged as they are, factor by factor: checkpoints of one run, without their base.

The average of the factors A and of the factors B is not the average of the products B A; the two nearly agree for
neighbouring checkpoints of one run. With a base the products are merged instead.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from consilience.checkpoints.adapter_factors import holds_factors
from consilience.checkpoints.model import Checkpoint
from consilience.errors import Problems

__all__ = ["check_factors", "run_folder", "step_of"]

_SETTINGS = ("use_rslora", "fan_in_fan_out", "bias", "rank_pattern", "alpha_pattern", "modules_to_save")
_LISTS = ("target_modules", "modules_to_save")
_STEP = re.compile(r"(?:checkpoint|step)[-_](\d+)")


def check_factors(models: Mapping[str, Checkpoint], problems: Problems, notices: list[str]) -> None:
    """Refuse adapters whose factors do not mean the same, naming the setting; note those of different runs."""
    opened = {name: model for name, model in models.items() if holds_factors(model)}
    if len(opened) < 2:
        return
    names = list(opened)
    configs = {name: opened[name].adapters[-1].config for name in names}
    for key in ("r", "lora_alpha", "target_modules", *_SETTINGS):
        values = {name: _value(configs[name], key) for name in names}
        odd = [name for name in names[1:] if values[name] != values[names[0]]]
        if odd:
            problems.add(
                f"adapters {names[0]!r} and {odd[0]!r} differ in {key}: {_shown(values[names[0]])} and "
                f"{_shown(values[odd[0]])}; their factors cannot be averaged one by one: name their base as `base` "
                "(with `output: {adapter: {}}` for an adapter), so that their products are merged"
            )
    bases = {str(configs[name].get("base_model_name_or_path")) for name in names}
    if len(bases) > 1:
        notices.append(f"the adapters name different bases ({', '.join(sorted(bases))}); make sure they are one model")
    runs = {run_folder(model.folder) for model in opened.values()}
    if len(runs) > 1:
        notices.append(
            f"the adapters lie in {len(runs)} folders, so perhaps come from different runs; their factors may be "
            "rotated against each other, then name their base as `base` and merge task vectors"
        )


def run_folder(folder: Path) -> Path:
    """Return the folder of the run that a checkpoint belongs to: RUN of RUN/checkpoints/step-60 or RUN/checkpoint-60.

    >>> run_folder(Path("a/run/checkpoints/step-60")).name, run_folder(Path("a/run")).name
    ('run', 'run')
    """
    if _STEP.fullmatch(folder.name) is None:
        return folder
    return folder.parent.parent if folder.parent.name == "checkpoints" else folder.parent


def step_of(folder: Path) -> int | None:
    """Return the step in a checkpoint's name, None where it has none.

    >>> step_of(Path("run/checkpoint-500")), step_of(Path("run"))
    (500, None)
    """
    found = _STEP.fullmatch(folder.name)
    return int(found[1]) if found else None


def _value(config: Mapping[str, Any], key: str) -> Any:
    value = config.get(key)
    if key in _LISTS and isinstance(value, list):
        return sorted(value)  # PEFT writes sets, in any order
    return value or None


def _shown(value: Any) -> str:
    return json.dumps(value)
