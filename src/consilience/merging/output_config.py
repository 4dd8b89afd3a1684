"""The configuration of the merged model: the donor's, with what the merge changes, and where the inputs differ."""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from typing import Any

from consilience.checkpoints.dtypes import DTYPES, torch_name
from consilience.checkpoints.model import Checkpoint
from consilience.merging.task import TensorTask
from consilience.merging.vocabulary import is_head_name

__all__ = ["output_config"]

_LAYER_KEYS = ("num_hidden_layers", "n_layer", "num_layers", "n_layers")
_PER_LAYER_LISTS = ("layer_types", "mlp_layer_types", "no_rope_layers")
_UNIMPORTANT = {
    "_name_or_path",
    "transformers_version",
    "torch_dtype",
    "dtype",
    "use_cache",
    "architectures",
    "gradient_checkpointing",
    "vocab_size",
    *_LAYER_KEYS,
    *_PER_LAYER_LISTS,
}


def output_config(
    donor: Checkpoint,
    models: Mapping[str, Checkpoint],
    tasks: Sequence[TensorTask],
    layers: int | None,
    vocabulary: Mapping[str, Any],
    notices: list[str],
) -> dict[str, Any]:
    """Return the donor's config with layer count, vocabulary size and stored type of the merge.

    Differences between the inputs' configs that could matter are added to `notices`.
    """
    config: dict[str, Any] = copy.deepcopy(dict(donor.config))
    if not config:
        return config
    inner = [config, *(v for k, v in config.items() if k == "text_config" and isinstance(v, dict))]
    for part in inner:
        if layers is not None:
            _set_layers(part, layers)
        part.update({k: v for k, v in vocabulary.items() if k in part})
    stored = {t.dtype for t in tasks if DTYPES[t.dtype].kind == "float"}
    if len(stored) == 1:
        for key in ("torch_dtype", "dtype"):
            if key in config:
                config[key] = torch_name(next(iter(stored)))
    if "vocab_size" in config and not any(is_head_name(task.name) for task in tasks):
        config.setdefault("tie_word_embeddings", True)  # what readers assume where no head is stored, said aloud
    notices.extend(_differences(donor, models))
    return config


def _set_layers(config: dict[str, Any], layers: int) -> None:
    for key in _LAYER_KEYS:
        if key in config:
            config[key] = layers
    for key in _PER_LAYER_LISTS:
        kinds = config.get(key)
        if isinstance(kinds, list) and kinds:
            config[key] = [kinds[i % len(kinds)] for i in range(layers)]


def _differences(donor: Checkpoint, models: Mapping[str, Checkpoint]) -> list[str]:
    notices = []
    for name, model in models.items():
        if not model.config or model is donor:
            continue
        keys = sorted((set(donor.config) | set(model.config)) - _UNIMPORTANT)
        differing = [k for k in keys if donor.config.get(k) != model.config.get(k)]
        if differing:
            shown = ", ".join(f"{k}: {donor.config.get(k)!r} / {model.config.get(k)!r}" for k in differing[:4])
            notices.append(f"config of {name!r} differs from the one carried over ({shown})")
    return notices
