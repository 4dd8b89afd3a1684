"""The adapter_config.json of a plain LoRA adapter, as PEFT reads it."""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

__all__ = ["PREFIX", "peft_config"]

PREFIX = "base_model.model."
"""What PEFT puts before the name of a module."""


def peft_config(
    base: str,
    ranks: Mapping[str, int],
    *,
    alpha: float | None = None,
    saved: Sequence[str] = (),
    task: str = "FEATURE_EXTRACTION",
) -> bytes:
    """Return the file for modules of these ranks; those that differ from the most common one get a pattern.

    >>> config = json.loads(peft_config("org/base", {"layers.0.q": 4, "layers.1.q": 4, "layers.0.k": 2}))
    >>> config["r"], config["rank_pattern"]
    (4, {'layers\\\\.0\\\\.k': 2})

    alpha: of all modules; without it each module's alpha is its rank, so that its scale is 1. saved: modules that
    the adapter replaces as a whole. task: PEFT's task type.
    """
    common = Counter(ranks.values()).most_common(1)[0][0] if ranks else 1
    odd = {re.escape(module): rank for module, rank in sorted(ranks.items()) if rank != common}
    config: Mapping[str, Any] = {
        "peft_type": "LORA",
        "task_type": task,
        "base_model_name_or_path": base,
        "r": common,
        "lora_alpha": alpha or common,
        "lora_dropout": 0.0,
        "bias": "none",
        "fan_in_fan_out": False,
        "inference_mode": True,
        "use_rslora": False,
        "use_dora": False,
        "target_modules": sorted(ranks),
        "rank_pattern": odd,
        "alpha_pattern": {} if alpha else odd,
        "modules_to_save": sorted(saved) or None,
    }
    return json.dumps(config, indent=2).encode()
