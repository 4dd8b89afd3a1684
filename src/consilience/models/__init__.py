"""Runnable models on transformers: dense text encoders causal language models."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from consilience.models.causal_loading import load_causal
from consilience.models.creation import create_causal
from consilience.models.loading import load_encoder

if TYPE_CHECKING:
    from consilience.models.batching import Tokens
    from consilience.models.causal import CausalModel
    from consilience.models.encoder import DenseEncoder

__all__ = ["CausalModel", "DenseEncoder", "Tokens", "create_causal", "load_causal", "load_encoder"]


def __getattr__(name: str) -> Any:
    # These import torch: only when they are asked for.
    if name == "CausalModel":
        from consilience.models.causal import CausalModel

        return CausalModel
    if name == "DenseEncoder":
        from consilience.models.encoder import DenseEncoder

        return DenseEncoder
    if name == "Tokens":
        from consilience.models.batching import Tokens

        return Tokens
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
