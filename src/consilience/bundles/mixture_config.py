"""The file that says which dense models become the experts of a sparse mixture; mergekit-moe's files are read too."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import yaml

from consilience.checkpoints.dtypes import DTYPES, dtype_from_name
from consilience.errors import Problems, RecipeError, did_you_mean

__all__ = ["GateMode", "MixtureExpert", "MixtureRequest", "load_mixture"]

GateMode = Literal["hidden", "cheap_embed", "random"]
_MODES = ("hidden", "cheap_embed", "random")
_KEYS = (
    "version",
    "base_model",
    "architecture",
    "gate_mode",
    "dtype",
    "experts_per_token",
    "experts",
    "shared_experts",
    "seed",
)
_EXPERT = ("source_model", "positive_prompts", "negative_prompts", "residual_scale", "name", "noise_scale")


@dataclass(frozen=True)
class MixtureExpert:
    """One dense model whose feed-forward layers become an expert, and the prompts that describe what it is for."""

    model: str
    positive: tuple[str, ...] = ()
    negative: tuple[str, ...] = ()
    residual_scale: float = 1.0


@dataclass(frozen=True)
class MixtureRequest:
    """A mixture to be built. `architecture` is "mixtral", "qwen2", "qwen3" or "" (chosen by the base)."""

    base: str
    experts: tuple[MixtureExpert, ...]
    gate_mode: GateMode = "hidden"
    experts_per_token: int = 2
    architecture: str = ""
    shared: MixtureExpert | None = None
    dtype: str | None = None
    seed: int = 0
    folder: Path = Path()
    text: str = ""


def load_mixture(path: str | Path) -> MixtureRequest:
    """Read a mixture file.

    >>> import tempfile
    >>> file = Path(tempfile.mkdtemp()) / "moe.yml"
    >>> _ = file.write_text('''
    ... base_model: models/chat
    ... gate_mode: random
    ... experts:
    ...   - source_model: models/chat
    ...   - source_model: models/code
    ... ''')
    >>> [expert.model for expert in load_mixture(file).experts]
    ['models/chat', 'models/code']

    Keys: base_model (attention, norms, embeddings), experts (source_model, positive_prompts, negative_prompts),
    gate_mode (hidden, cheap_embed, random), experts_per_token (2), architecture (mixtral, qwen2, qwen3; by default what
    fits the base), shared_experts (at most one; qwen2 only; with residual_scale), dtype, seed. Raises RecipeError with
    the file's name and all problems.
    """
    file = Path(path)
    try:
        text = file.read_text(encoding="utf-8")
        content = yaml.safe_load(text)
    except FileNotFoundError:
        raise RecipeError(f"mixture {file}: no such file") from None
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        raise RecipeError(f"mixture {file}: cannot be read ({error})") from error
    if not isinstance(content, dict):
        raise RecipeError(f"mixture {file}: expected a mapping with base_model and experts")
    problems = Problems()
    request = _parse(content, file.parent, text, problems)
    problems.raise_if_any(RecipeError, f"mixture {file}")
    return request


def _parse(content: Mapping[str, Any], folder: Path, text: str, problems: Problems) -> MixtureRequest:
    for key in content:
        if key not in _KEYS:
            problems.add(f"{key}: unknown key{did_you_mean(str(key), _KEYS)}")
    base = content.get("base_model")
    if not isinstance(base, str):
        problems.add(f"base_model: {base!r} is not a model")
    mode = content.get("gate_mode", "hidden")
    if mode not in _MODES:
        problems.add(f"gate_mode: {mode!r} is none of {', '.join(_MODES)}{did_you_mean(str(mode), _MODES)}")
    written = content.get("experts")
    experts = _experts(written, "experts", mode, problems)
    if not experts:
        problems.add("experts: name at least one, each with source_model")
    shared = _experts(content.get("shared_experts") or [], "shared_experts", "random", problems)
    if len(shared) > 1:
        problems.add(f"shared_experts: {len(shared)} are given; the layouts have room for one")
    count = content.get("experts_per_token", min(2, max(len(experts), 1)))
    if isinstance(count, bool) or not isinstance(count, int) or not 1 <= count <= max(len(experts), 1):
        problems.add(f"experts_per_token: {count!r} is not a whole number from 1 to {len(experts)} (the experts)")
        count = 1
    stored = content.get("dtype")
    name = dtype_from_name(str(stored)) if stored is not None else None
    if stored is not None and (name is None or DTYPES[name].kind != "float"):
        problems.add(f"dtype: {stored!r} is not a float type; use float32, float16 or bfloat16")
    seed = content.get("seed", 0)
    if isinstance(seed, bool) or not isinstance(seed, int):
        problems.add(f"seed: {seed!r} is not a whole number")
        seed = 0
    return MixtureRequest(
        str(base),
        tuple(experts),
        mode if mode in _MODES else "hidden",
        count,
        str(content.get("architecture") or ""),
        shared[0] if shared else None,
        name,
        seed,
        folder,
        text,
    )


def _experts(written: Any, key: str, mode: Any, problems: Problems) -> list[MixtureExpert]:
    if not isinstance(written, list):
        problems.add(f"{key}: expected a list of {{source_model: ..., positive_prompts: [...]}}, found {written!r}")
        return []
    found = []
    for index, entry in enumerate(written):
        where = f"{key}[{index}]"
        if not isinstance(entry, Mapping) or not isinstance(entry.get("source_model"), str):
            problems.add(f"{where}: expected a mapping with source_model, found {entry!r}")
            continue
        for name in entry:
            if name not in _EXPERT:
                problems.add(f"{where}.{name}: unknown key{did_you_mean(str(name), _EXPERT)}")
        if entry.get("noise_scale"):
            problems.add(f"{where}.noise_scale: noise on the weights of experts is not offered; leave it out")
        positive = _texts(entry.get("positive_prompts"), f"{where}.positive_prompts", problems)
        negative = _texts(entry.get("negative_prompts"), f"{where}.negative_prompts", problems)
        if mode in ("hidden", "cheap_embed") and not positive:
            problems.add(f"{where}.positive_prompts: gate_mode {mode!r} takes the expert's gate from them; give some")
        scale = entry.get("residual_scale", 1.0)
        if isinstance(scale, bool) or not isinstance(scale, int | float):
            problems.add(f"{where}.residual_scale: {scale!r} is not a number")
            scale = 1.0
        found.append(MixtureExpert(entry["source_model"], positive, negative, float(scale)))
    return found


def _texts(value: Any, where: str, problems: Problems) -> tuple[str, ...]:
    if value is None:
        return ()
    if not isinstance(value, list) or not all(isinstance(text, str) and text for text in value):
        problems.add(f"{where}: expected a list of texts, found {value!r}")
        return ()
    return tuple(value)
