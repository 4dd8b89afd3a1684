"""Tied weights: names a model uses that its files leave out because another tensor is the same."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import Any

__all__ = ["tied_names", "untie"]

_EMBEDDINGS = (
    "embed_tokens.weight",
    "wte.weight",
    "word_embeddings.weight",
    "embed_in.weight",
    "tok_embeddings.weight",
)
_NESTED = ("text_config", "llm_config", "language_config")
_HEADS = ("ForCausalLM", "LMHeadModel", "ForConditionalGeneration", "ForMaskedLM", "ForPreTraining")


def tied_names(names: Collection[str], config: Mapping[str, Any]) -> dict[str, str]:
    """Return {name left out: stored name} of tied weights.

    >>> tied_names(["model.embed_tokens.weight"], {"tie_word_embeddings": True})
    {'lm_head.weight': 'model.embed_tokens.weight'}

    Tied means: the config (or its nested text config) says `tie_word_embeddings`, or says nothing (tied is the default
    of transformers), and its architecture has an output head. Only names that are absent from `names` appear.
    """
    if not names or not _says_tied(config):
        return {}
    stored = set(names)
    for inside in ("", "model."):  # T5's and BART's kin
        if f"{inside}shared.weight" in stored:
            parts = [f"{inside}{part}.embed_tokens.weight" for part in ("encoder", "decoder")]
            return {alias: f"{inside}shared.weight" for alias in [*parts, "lm_head.weight"] if alias not in stored}
    embedding = next((name for leaf in _EMBEDDINGS for name in names if _is_leaf(name, leaf)), None)
    if embedding is None:
        return {}
    alias = _head_name(embedding, stored)
    return {} if alias in stored else {alias: embedding}


def untie(config: Mapping[str, Any]) -> dict[str, Any]:
    """Return the config of the same model with an output head of its own.

    >>> untie({"tie_word_embeddings": True, "text_config": {"tie_word_embeddings": True}})
    {'tie_word_embeddings': False, 'text_config': {'tie_word_embeddings': False}}
    """
    changed = {**config, "tie_word_embeddings": False}
    for key in _NESTED:
        if isinstance(config.get(key), dict):
            changed[key] = {**config[key], "tie_word_embeddings": False}
    return changed


def _says_tied(config: Mapping[str, Any]) -> bool:
    said = config.get("tie_word_embeddings")
    for key in _NESTED:
        nested = config.get(key)
        if said is None and isinstance(nested, dict):
            said = nested.get("tie_word_embeddings")
    architectures = [str(architecture) for architecture in config.get("architectures") or ()]
    has_head = any(architecture.endswith(_HEADS) for architecture in architectures)
    if said is None:
        return has_head
    return bool(said) and (has_head or not architectures)


def _is_leaf(name: str, leaf: str) -> bool:
    return name == leaf or name.endswith(f".{leaf}")


def _head_name(embedding: str, stored: set[str]) -> str:
    """Return what the output head is called, from how the rest of the model is named."""
    if any(name.startswith("cls.predictions.") for name in stored):
        return "cls.predictions.decoder.weight"
    if any(name.startswith("lm_head.dense.") for name in stored):
        return "lm_head.decoder.weight"
    if embedding.endswith("embed_in.weight"):
        return "embed_out.weight"
    if embedding.startswith("language_model.model."):
        return "language_model.lm_head.weight"
    return "lm_head.weight"
