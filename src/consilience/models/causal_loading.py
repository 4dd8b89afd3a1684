"""Open a causal language model: the checkpoint's weights in transformers' architecture, with its tokenizer."""

from __future__ import annotations

from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from consilience.checkpoints import Checkpoint, open_checkpoint
from consilience.checkpoints.dtypes import dtype_from_name, torch_name
from consilience.errors import CheckpointError, MissingExtraError, Problems, RequestError
from consilience.models.loading import BUILDING, choose_device, open_tokenizer, read_config, without_initial_values
from consilience.models.weights import match_names

if TYPE_CHECKING:
    from consilience.models.causal import CausalModel

__all__ = ["load_causal"]

_DTYPES = ("F32", "BF16", "F16")
# computed by the code of today, stored by versions of the past
_OLD_BUFFERS = (".rotary_emb.inv_freq", ".attn.bias", ".attn.masked_bias")


def load_causal(
    reference: str | Path | Checkpoint,
    *,
    device: str | None = None,
    dtype: str = "float32",
    max_tokens: int | None = None,
) -> CausalModel:
    """Open a causal language model with the weights of any checkpoint reference.

    >>> import tempfile
    >>> from consilience.models import create_causal
    >>> folder = Path(tempfile.mkdtemp()) / "tiny"
    >>> model = create_causal(folder, {"model_type": "gpt2", "n_embd": 16, "n_layer": 1, "n_head": 2}, "abc")
    >>> load_causal(folder).mean_loss(["abcabc"]) == model.mean_loss(["abcabc"])
    True

    reference: a folder, `package:module/folder`, a hub id, `MODEL+ADAPTER`, or an opened Checkpoint; the architecture
    is the one that its config.json names in transformers. device: None is the GPU where there is one. dtype: what the
    weights are held and computed with in. max_tokens: longest sequence, the config's number of positions by default.

    Raises CheckpointError where the folder is no causal language model or its tensors do not fit its config,
    RequestError for an impossible device, dtype or length.
    """
    for module in ("torch", "transformers"):
        if find_spec(module) is None:
            raise MissingExtraError(module, "text")
    import torch

    from consilience.models.causal import CausalModel

    held = dtype_from_name(dtype)
    if held not in _DTYPES:
        raise RequestError(f"dtype {dtype!r} cannot be computed with; use float32, bfloat16 or float16")
    checkpoint = reference if isinstance(reference, Checkpoint) else open_checkpoint(reference)
    if not (checkpoint.folder / "config.json").is_file():
        raise CheckpointError(
            f"{checkpoint.reference}: no config.json in {checkpoint.folder}; a language model needs a model folder"
        )
    config = read_config(checkpoint.folder, checkpoint.reference)
    kind = _architecture(config, checkpoint.reference)
    if "tie_word_embeddings" in checkpoint.config:  # an adapter can untie the embeddings
        config.tie_word_embeddings = bool(checkpoint.config["tie_word_embeddings"])
    tokenizer = open_tokenizer(checkpoint.folder)
    module, names = _filled(kind, config, checkpoint)
    positions = getattr(config, "max_position_embeddings", None)
    limit = max_tokens if max_tokens is not None else positions or tokenizer.model_max_length
    if limit < 2 or (isinstance(positions, int) and limit > positions):
        raise RequestError(f"max_tokens is {limit}; this model takes 2 to {positions or 'any number of'} tokens")
    module = module.to(getattr(torch, torch_name(str(held)))).to(choose_device(device)).eval()
    return CausalModel(checkpoint, module, tokenizer, names, max_tokens=int(limit))


def _architecture(config: Any, reference: str) -> Any:
    import transformers

    kind = transformers.AutoModelForCausalLM._model_mapping.get(type(config), None)
    if kind is None:
        raise CheckpointError(f"{reference}: transformers has no causal language model of type {config.model_type!r}")
    return kind[0] if isinstance(kind, tuple | list) else kind


def _filled(kind: Any, config: Any, checkpoint: Checkpoint) -> tuple[Any, dict[str, str]]:
    """Return the network with its weights, and the tensor name of each parameter."""
    with without_initial_values():
        module = kind._from_config(config).float()
    module.tie_weights()
    try:
        names = _matched(module, checkpoint)
    except CheckpointError:
        if not _has_conversion(config.model_type):
            raise
        return _converted(kind, config, checkpoint)
    parameters = dict(module.named_parameters())
    for name, tensor in names.items():
        source = checkpoint.tensors[tensor]
        source.read(0, source.numel, parameters[name].detach().view(-1).numpy())
    _read_generation_config(module, checkpoint.folder)
    return module, names


def _matched(module: Any, checkpoint: Checkpoint) -> dict[str, str]:
    """Return the tensor name of each parameter. Raises CheckpointError where tensors and parameters do not fit."""
    prefix = str(getattr(module, "base_model_prefix", "") or "-")
    wanted = {name: tuple(parameter.shape) for name, parameter in module.named_parameters()}
    shapes = {name: source.shape for name, source in checkpoint.tensors.items()}
    # A file may keep the inner model with its prefix (as most do) or without (GPT-2's).
    bare = not any(name.startswith(f"{prefix}.") for name in shapes)
    own = {name: name.removeprefix(f"{prefix}.") if bare else name for name in wanted}
    tied = {alias: shapes[stored] for alias, stored in checkpoint.tied.items() if stored in shapes}
    matched = match_names(
        {own[name]: shape for name, shape in wanted.items()},
        shapes | tied,
        prefix="-",
        buffers=[name for name in shapes if name.endswith(_OLD_BUFFERS) and name not in own.values()],
        subject=f"{checkpoint.reference}: its tensors do not fit its config",
    )
    return {name: checkpoint.tied.get(matched[inner], matched[inner]) for name, inner in own.items()}


def _has_conversion(model_type: str) -> bool:
    """Whether files of an architecture hold tensors that transformers (from version 5) joins when it reads them."""
    try:
        from transformers.conversion_mapping import get_checkpoint_conversion_mapping
    except ImportError:
        return False
    return get_checkpoint_conversion_mapping(model_type) is not None


def _converted(kind: Any, config: Any, checkpoint: Checkpoint) -> tuple[Any, dict[str, str]]:
    """Load through transformers' own conversion, as mixtures of experts need it; joined parameters have no name."""
    import torch
    from transformers.utils import logging

    values: dict[str, Any] = {}
    for name, source in checkpoint.tensors.items():
        array = np.empty(source.numel, np.float32)
        source.read(0, source.numel, array)
        values[name] = torch.from_numpy(array).view(source.shape)
    level = logging.get_verbosity()
    logging.set_verbosity_error()  # the problems below say what its report would
    try:
        with BUILDING:
            module, found = kind.from_pretrained(
                None, config=config, state_dict=values, output_loading_info=True, dtype=torch.float32
            )
    finally:
        logging.set_verbosity(level)
    problems = Problems()
    for key, entries in found.items():
        if entries:
            problems.add(f"{key.replace('_', ' ')}: {', '.join(map(str, sorted(entries)[:8]))} ({len(entries)} in all)")
    problems.raise_if_any(CheckpointError, f"{checkpoint.reference}: its tensors do not fit its config")
    _read_generation_config(module, checkpoint.folder)
    names = {
        name: name
        for name, parameter in module.named_parameters()
        if name in values and values[name].shape == parameter.shape
    }
    return module, names


def _read_generation_config(module: Any, folder: Path) -> None:
    """Take the tokens that end a text from the folder, where it says so."""
    from transformers import GenerationConfig

    if (folder / "generation_config.json").is_file():
        module.generation_config = GenerationConfig.from_pretrained(folder, local_files_only=True)
