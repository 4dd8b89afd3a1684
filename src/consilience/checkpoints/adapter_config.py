"""What an adapter_config.json may say: plain LoRA; every variant that computes something else is refused by name."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

__all__ = ["config_problems", "pattern_value"]

_VARIANTS = {
    "use_dora": "DoRA rescales whole columns of the weights",
    "use_qalora": "QALoRA pools the inputs",
    "use_bdlora": "block-diagonal LoRA has other factors",
    "alora_invocation_tokens": "activated LoRA applies to part of the text only",
    "arrow_config": "Arrow routes between adapters at run time",
    "kasa_config": "KaSA changes the base weights",
    "monteclora_config": "MonteCLoRA samples its factors",
    "layer_replication": "the adapter repeats layers of its base",
    "target_parameters": "LoRA on bare parameters (fused experts) has its own layout",
    "trainable_token_indices": "single rows of the embedding were trained",
    "lora_bias": "the adapter changes biases through its factors",
}
_CHANGED_BASES = ("pissa", "olora", "corda", "loftq", "lora_ga")
_TRAINING_ONLY = {"loftq_config", "eva_config", "corda_config", "lora_ga_config", "megatron_config", "velora_config"}


def config_problems(config: Mapping[str, Any]) -> list[str]:
    """Return why the adapter cannot be applied as W + scale * (B @ A); an empty list when it can.

    >>> config_problems({"peft_type": "LORA", "use_dora": True})[0][:39]
    'use_dora is set: DoRA rescales whole co'
    """
    found = []
    kind = config.get("peft_type")
    if kind != "LORA":
        found.append(f"its peft_type is {kind!r}; only LORA can be merged; merge it with PEFT and use the whole model")
    for key, reason in _VARIANTS.items():
        if config.get(key):
            found.append(f"{key} is set: {reason}; merge it with PEFT (merge_and_unload) and use the whole model")
    start = config.get("init_lora_weights")
    if isinstance(start, str) and start.lower().startswith(_CHANGED_BASES):
        found.append(
            f"init_lora_weights is {start!r}, which changed the base while training; save the adapter again with "
            "save_pretrained(..., path_initial_model_for_weight_conversion=...)"
        )
    unknown = [
        key
        for key, value in config.items()
        if value
        and key not in _VARIANTS
        and key not in _TRAINING_ONLY
        and key != "use_rslora"
        and (key.startswith("use_") or key.endswith("_config"))
    ]
    found.extend(f"{key} is set, and it is not known whether it changes the weights" for key in unknown)
    for key in ("rank_pattern", "alpha_pattern"):
        if not isinstance(config.get(key) or {}, dict):
            found.append(f"{key} is {config[key]!r}; expected an object of module names and numbers")
    found.extend(_number_problems(config))
    return found


def _number_problems(config: Mapping[str, Any]) -> list[str]:
    found = []
    values = {"r": config.get("r", 8), "lora_alpha": config.get("lora_alpha", 8)}
    for key in ("rank_pattern", "alpha_pattern"):
        pattern = config.get(key)
        values |= {f"{key}[{name!r}]": value for name, value in (pattern if isinstance(pattern, dict) else {}).items()}
    for name, value in values.items():
        number = isinstance(value, int | float) and not isinstance(value, bool)
        is_rank = name == "r" or name.startswith("rank")
        if not number or (is_rank and (value < 1 or value != int(value))):
            found.append(f"{name} is {value!r}; expected a {'whole number above 0' if is_rank else 'number'}")
    return found


def pattern_value(pattern: Mapping[str, Any] | None, module: str, default: Any) -> Any:
    """Return the value of the first pattern (a regular expression for the end of a name) that fits, or `default`.

    >>> pattern_value({"query": 4}, "layer.0.query", 8), pattern_value({"query": 4}, "layer.0.key", 8)
    (4, 8)
    """
    for key, value in (pattern or {}).items():
        try:
            fits = re.fullmatch(rf"(.*\.)?({key})", module) is not None
        except re.error:
            fits = key == module
        if fits:
            return value
    return default
