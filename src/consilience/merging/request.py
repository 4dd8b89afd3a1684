"""What a recipe asks for, whatever language it was written in: plain data, before any file is opened."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from consilience.merging.coefficients import CoefficientEntry
from consilience.merging.parameters import ParameterTable

__all__ = ["AdapterOutput", "MergeRequest", "Slice", "SliceSource", "TokenRule", "TokenizerRule"]


@dataclass(frozen=True)
class SliceSource:
    """Layers [start, stop) of one model."""

    model: str
    start: int
    stop: int


@dataclass(frozen=True)
class Slice:
    """Consecutive output layers, made from equally long layer ranges of the sources."""

    sources: tuple[SliceSource, ...]
    base: str | None = None


@dataclass(frozen=True)
class TokenRule:
    """Where the row of one token comes from: a model's own row for it, another token's row, or zeros."""

    kind: Literal["default", "model", "token", "zero"] = "default"
    model: str | None = None
    token: str | None = None
    token_id: int | None = None
    force: bool = False


@dataclass(frozen=True)
class TokenizerRule:
    """The output vocabulary: "union", "base" or a model's name; tokens with rules of their own; padding of rows."""

    source: str = "union"
    pad_to_multiple_of: int | None = None
    tokens: Mapping[str, TokenRule] = field(default_factory=dict)


@dataclass(frozen=True)
class AdapterOutput:
    """Write the merge as a LoRA adapter of the base, re-factored to `rank`; None: the input adapters' ranks added up.

    With None sums and differences of adapters lose nothing.
    """

    rank: int | None
    alpha: float | None = None


@dataclass(frozen=True)
class MergeRequest:
    """One merge. `models` maps names to references (base included), in the order of the recipe.

    `cast` rounds inputs to a type when read (mergekit's `dtype`); `out_dtype` is the stored type; both are
    safetensors names ("BF16"). `merge`/`copy` are name patterns: copied tensors come from the base (else the first
    expert). `stages` are named merges that run first and can be referred to as models. `slices` is None for whole
    models. `required` names parameters that must be given although the method has a default (mergekit's `weight`).
    `aux` are places of artefacts by kind and expert ("" where all experts share one).
    `renames` say, by model, which beginnings of tensor names stand for which others (a language model inside a larger
    one). `coefficients` are entries tried in order, see merging/coefficients.py. `warnings` are to be shown to the
    user.
    """

    method: str
    models: Mapping[str, str]
    experts: tuple[str, ...]
    base: str | None = None
    parameters: ParameterTable = field(default_factory=ParameterTable)
    coefficients: tuple[CoefficientEntry, ...] = ()
    required: tuple[str, ...] = ()
    merge: tuple[str, ...] = ()
    copy: tuple[str, ...] = ()
    slices: tuple[Slice, ...] | None = None
    cast: str | None = None
    out_dtype: str | None = None
    tokenizer: TokenizerRule | None = None
    chat_template: str | None = None
    adapter: AdapterOutput | None = None
    aux: Mapping[str, Mapping[str, str]] = field(default_factory=dict)
    renames: Mapping[str, Mapping[str, str]] = field(default_factory=dict)
    seed: int = 0
    stages: tuple[tuple[str, MergeRequest], ...] = ()
    warnings: tuple[str, ...] = ()
    origin: str = "recipe"
    folder: Path = Path()
    text: str = ""
