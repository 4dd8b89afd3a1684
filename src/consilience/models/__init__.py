"""Runnable models on transformers: dense text encoders, classifiers on them, causal and sequence-to-sequence models."""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

from consilience.models.causal_loading import load_causal
from consilience.models.creation import create_causal
from consilience.models.loading import load_encoder
from consilience.models.seq2seq_loading import create_seq2seq, load_seq2seq

if TYPE_CHECKING:
    from consilience.models.batching import Tokens
    from consilience.models.causal import CausalModel
    from consilience.models.classifier import TextClassifier, load_classifier
    from consilience.models.encoder import DenseEncoder

__all__ = [
    "CausalModel",
    "DenseEncoder",
    "TextClassifier",
    "Tokens",
    "create_causal",
    "create_seq2seq",
    "load_causal",
    "load_classifier",
    "load_encoder",
    "load_seq2seq",
]

_WITH_TORCH = {
    "CausalModel": "causal",
    "DenseEncoder": "encoder",
    "TextClassifier": "classifier",
    "Tokens": "batching",
    "load_classifier": "classifier",
}


def __getattr__(name: str) -> Any:
    # These import torch: only when they are asked for.
    if name in _WITH_TORCH:
        return getattr(import_module(f"{__name__}.{_WITH_TORCH[name]}"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
