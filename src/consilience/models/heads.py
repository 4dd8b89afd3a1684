"""Transformers folders that are opened with their head: masked language models, sequence classifiers."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Literal

from consilience.errors import CheckpointError, MissingExtraError
from consilience.models.loading import BUILDING, choose_device, open_tokenizer

__all__ = ["longest_input", "open_with_head"]

_HEADS = {"MaskedLM": "masked language model", "SequenceClassification": "sequence classifier"}


def open_with_head(
    folder: str | Path, head: Literal["MaskedLM", "SequenceClassification"], *, wanted: str, device: str | None = None
) -> tuple[Any, Any]:
    """Return the model (float32, for inference, on the device) and the tokenizer of a folder.

    wanted: what it is opened as, for messages. Nothing is downloaded and only safetensors are read. Raises
    CheckpointError for a folder that is none, or lacks tensors, the head's among them.
    """
    try:
        import torch
        import transformers
    except ImportError:
        raise MissingExtraError("transformers", "text") from None
    place, named = Path(folder), _HEADS[head]
    if not (place / "config.json").is_file():
        raise CheckpointError(f"{place}: no config.json; a {wanted} is the folder of a {named}")
    chosen = choose_device(device)
    tokenizer = open_tokenizer(place)
    try:
        with BUILDING:
            model, facts = getattr(transformers, f"AutoModelFor{head}").from_pretrained(
                place, local_files_only=True, use_safetensors=True, output_loading_info=True, dtype=torch.float32
            )
    except (OSError, ValueError) as error:
        raise CheckpointError(f"{place}: cannot be opened as a {named} ({error})") from error
    if missing := sorted(facts["missing_keys"]):
        raise CheckpointError(
            f"{place}: {len(missing)} tensors of a {named} are missing, such as {missing[0]}; it is no {wanted}"
        )
    return model.eval().to(chosen), tokenizer


def longest_input(model: Any, asked: int | None) -> int:
    """Return how many tokens are read: those asked for, at most as many as the model has positions for."""
    positions = int(getattr(model.config, "max_position_embeddings", 512))
    return min(asked or positions, positions)
