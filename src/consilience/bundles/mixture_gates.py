"""Router rows of a mixture: what each layer's router compares a token with, one unit row per expert.

"hidden": the mean input of the layer's router over the tokens of the expert's prompts (of the negative ones
subtracted), as the base model computes it; "cheap_embed": the mean embedding of those tokens, the same in every layer;
"random": drawn from the seed. Rows have length 1 times the scale below, so that no expert wins by length.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from consilience.bundles.mixture_config import MixtureExpert
from consilience.core.randomness import stream_key, uniform_bits
from consilience.errors import RequestError

if TYPE_CHECKING:
    from consilience.checkpoints.model import Checkpoint

__all__ = ["gate_rows"]

_BATCH = 8


def gate_rows(
    mode: str,
    base: Checkpoint,
    experts: Sequence[MixtureExpert],
    layers: int,
    hidden: int,
    *,
    seed: int,
    device: str | None = None,
) -> NDArray[np.float32]:
    """Return the rows, (layers, experts, hidden).

    Raises RequestError where the prompts of an expert do not tell it from nothing (positive and negative means equal).
    """
    if mode == "random":
        return _random(layers, len(experts), hidden, seed)
    means = _hidden_means if mode == "hidden" else _embedding_means
    texts = list(dict.fromkeys(text for e in experts for text in (*e.positive, *e.negative)))
    found = means(base, texts, layers, device)
    rows = np.empty((layers, len(experts), hidden), np.float32)
    for index, expert in enumerate(experts):
        row = _mean(found, expert.positive) - (_mean(found, expert.negative) if expert.negative else 0.0)
        norms = np.linalg.norm(row, axis=-1, keepdims=True)
        if not (norms > 1e-12).all():
            raise RequestError(f"experts[{index}] ({expert.model}): its positive and negative prompts mean the same")
        rows[:, index] = row / norms
    return rows


def _mean(found: Mapping[str, NDArray[np.float64]], texts: Sequence[str]) -> NDArray[np.float64]:
    total: NDArray[np.float64] = np.mean([found[text] for text in texts], axis=0)
    return total


def _require_tokens(texts: Sequence[str], counts: Sequence[int]) -> None:
    empty = [text for text, count in zip(texts, counts, strict=True) if not count]
    if empty:
        raise RequestError(f"the base's tokenizer finds no token in the prompt {empty[0]!r}; use another prompt")


def _random(layers: int, experts: int, hidden: int, seed: int) -> NDArray[np.float32]:
    rows = np.empty((layers, experts, hidden), np.float32)
    for layer in range(layers):
        for expert in range(experts):
            bits = uniform_bits(stream_key(seed, "gate", str(layer), str(expert)), 0, hidden)
            row = bits.astype(np.float64) / 2**32 - 0.5
            rows[layer, expert] = row / np.linalg.norm(row)
    return rows


def _hidden_means(
    base: Checkpoint, texts: Sequence[str], layers: int, device: str | None
) -> dict[str, NDArray[np.float64]]:
    """Return the mean router input of each text: (layers, hidden), taken in front of each feed-forward block."""
    import torch

    from consilience.models.causal_loading import load_causal

    model = load_causal(base, device=device)
    blocks = [module for name, module in model.module.named_modules() if name.endswith(".mlp")]
    if len(blocks) != layers:
        raise RequestError(f"{base.reference}: {len(blocks)} feed-forward blocks in {layers} layers")
    seen: list[Any] = [None] * layers

    def keep(place: int) -> Any:
        def hook(module: Any, inputs: Any) -> None:
            seen[place] = inputs[0].detach()

        return hook

    hooks = [block.register_forward_pre_hook(keep(place)) for place, block in enumerate(blocks)]
    found: dict[str, NDArray[np.float64]] = {}
    try:
        with torch.inference_mode():
            for start in range(0, len(texts), _BATCH):
                part = texts[start : start + _BATCH]
                (batch,) = model.batches(part, len(part))
                _require_tokens(part, batch.mask.sum(1).tolist())
                model.logits(batch)
                real = batch.mask[..., None]
                sums = [(values.double() * real).sum(1) / real.sum(1) for values in seen]
                for place, text in enumerate(part):
                    found[text] = np.stack([values[place].cpu().numpy() for values in sums])
    finally:
        for hook in hooks:
            hook.remove()
    return found


def _embedding_means(
    base: Checkpoint, texts: Sequence[str], layers: int, device: str | None
) -> dict[str, NDArray[np.float64]]:
    """Return the mean embedding of each text's tokens, read row by row, for every layer."""
    from consilience.models.loading import open_tokenizer

    source = base.tensors["model.embed_tokens.weight"]
    width = source.shape[1]
    tokenizer = open_tokenizer(base.folder)
    found = {}
    for text in texts:
        ids = tokenizer(text)["input_ids"]
        _require_tokens([text], [len(ids)])
        row = np.empty(width, np.float64)
        total = np.zeros(width)
        for token in ids:
            source.read(token * width, (token + 1) * width, row)
            total += row
        found[text] = np.broadcast_to(total / len(ids), (layers, width))
    return found
