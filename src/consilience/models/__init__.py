"""Runnable models: dense text encoders on transformers, in the folders of sentence-transformers."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from consilience.models.loading import load_encoder

if TYPE_CHECKING:
    from consilience.models.batching import Tokens
    from consilience.models.encoder import DenseEncoder

__all__ = ["DenseEncoder", "Tokens", "load_encoder"]


def __getattr__(name: str) -> Any:
    # DenseEncoder imports torch: only when it is asked for.
    if name == "DenseEncoder":
        from consilience.models.encoder import DenseEncoder

        return DenseEncoder
    if name == "Tokens":
        from consilience.models.batching import Tokens

        return Tokens
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
