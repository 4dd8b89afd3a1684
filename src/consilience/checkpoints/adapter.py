"""LoRA adapters in PEFT's format: read the folder, refuse what is not plain LoRA, apply to a model on the fly."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

from consilience.checkpoints.adapter_apply import apply_adapter
from consilience.checkpoints.adapter_config import config_problems, pattern_value
from consilience.checkpoints.folder import read_json
from consilience.checkpoints.header import read_header
from consilience.checkpoints.model import Adapter, LowRankPair, WeightFile
from consilience.checkpoints.refusals import foreign_weights
from consilience.checkpoints.sources import Stored
from consilience.errors import CheckpointError, Problems

__all__ = ["apply_adapter", "read_adapter"]

_FILE = "adapter_model.safetensors"
_PREFIX = "base_model.model."
_FACTOR = re.compile(r"(?P<module>.+)\.lora_(?P<embedding>embedding_)?(?P<side>[AB])(\.(?!bias$)(?P<rest>[\w-]+))*")


def read_adapter(folder: Path, name: str) -> Adapter:
    """Read a PEFT LoRA folder without reading weights; see `open_adapter`.

    The scale of a module is alpha / rank, or alpha / sqrt(rank) with rsLoRA, both with their per-module patterns.
    """
    problems = Problems()
    if folder.name == _FILE and folder.is_file():
        folder = folder.parent
    if not folder.is_dir() or not (folder / "adapter_config.json").is_file():
        raise CheckpointError(f"{folder} is not an adapter: it has no adapter_config.json (a PEFT LoRA folder has one)")
    config = read_json(folder / "adapter_config.json", problems)
    problems.extend(config_problems(config))
    if not (folder / _FILE).is_file():
        problems.extend(foreign_weights(path for path in folder.iterdir() if path.stem == "adapter_model"))
        if not problems:
            problems.add(f"it has no {_FILE}")
        problems.raise_if_any(CheckpointError, f"adapter {folder}")
    try:
        header = read_header(folder / _FILE)
    except CheckpointError as error:
        problems.add(str(error))
        problems.raise_if_any(CheckpointError, f"adapter {folder}")
        raise
    if not problems:
        pairs, replaced = _sort_tensors(header.tensors, config, problems)
    problems.raise_if_any(CheckpointError, f"adapter {folder}")
    file = WeightFile(header.path, header.size, header.header_hash, header.mtime_ns)
    base = config.get("base_model_name_or_path")
    return Adapter(name, folder, config, pairs, replaced, str(base) if base else None, (file,))


def _sort_tensors(
    tensors: Mapping[str, Stored], config: Mapping[str, Any], problems: Problems
) -> tuple[dict[str, LowRankPair], dict[str, Stored]]:
    """Pair the factors of each module; what is left replaces tensors of the model."""
    sides: dict[tuple[str, bool], dict[str, Stored]] = {}
    replaced: dict[str, Stored] = {}
    for stored_name, stored in tensors.items():
        name = stored_name.removeprefix(_PREFIX)
        match = _FACTOR.fullmatch(name)
        if match:
            sides.setdefault((match["module"], match["embedding"] is not None), {})[match["side"]] = stored
        elif "lora_" in name or "trainable_tokens" in name:
            problems.add(f"tensor {stored_name!r} is not a factor of plain LoRA; such adapters cannot be applied")
        else:
            plain = name.replace(".base_layer.", ".").replace(".modules_to_save.", ".")
            replaced[plain.replace(".default.", ".")] = stored
    pairs: dict[str, LowRankPair] = {}
    for (module, embedding), found in sides.items():
        if len(found) != 2:
            problems.add(f"module {module!r} has lora_{next(iter(found))} but not its partner; the file is incomplete")
            continue
        pair = _pair(module, found["A"], found["B"], embedding, config, problems)
        if pair is not None:
            pairs[module] = pair
    if not pairs and not replaced and not problems:
        problems.add("it holds no tensors")
    return pairs, replaced


def _pair(
    module: str, a: Stored, b: Stored, embedding: bool, config: Mapping[str, Any], problems: Problems
) -> LowRankPair | None:
    rank = int(pattern_value(config.get("rank_pattern"), module, config.get("r", 8)))
    alpha = float(pattern_value(config.get("alpha_pattern"), module, config.get("lora_alpha", 8)))
    fits = len(a.shape) >= 2 and len(a.shape) == len(b.shape) and math.prod(b.shape[2:]) == 1
    if not fits or a.shape[0] != b.shape[1]:
        problems.add(f"module {module!r}: lora_A {a.shape} and lora_B {b.shape} are not factors of one product")
        return None
    if a.shape[0] != rank:
        problems.add(
            f"module {module!r}: its factors have rank {a.shape[0]}, adapter_config.json says {rank} "
            "(r and rank_pattern); the scale would be wrong"
        )
        return None
    scale = alpha / math.sqrt(rank) if config.get("use_rslora") else alpha / rank
    kind: Literal["linear", "embedding", "conv"] = "conv" if len(a.shape) > 2 else "linear"
    return LowRankPair(a, b, scale, "embedding" if embedding else kind)
