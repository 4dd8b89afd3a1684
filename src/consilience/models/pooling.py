"""From token vectors to one vector per text: the pooling modes of sentence-transformers folders."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from consilience.models.folder import POOLING_MODES

__all__ = ["pool", "without_prompt"]


def pool(tokens: Tensor, mask: Tensor, modes: Sequence[str], *, positions: Tensor | None = None) -> Tensor:
    """Return one vector per text; several modes are joined side by side.

    >>> tokens = torch.tensor([[[1.0], [3.0], [9.0]]])
    >>> pool(tokens, torch.tensor([[1, 1, 0]]), ["mean", "max", "lasttoken"]).tolist()
    [[2.0, 3.0, 3.0]]

    tokens: (texts, length, width) floats. mask: (texts, length), 1 for tokens that count. positions: (texts, length),
    the weight of each token for `weightedmean` (1, 2, ... from the first real token by default). Padding may be on
    either side. Returns (texts, width * modes).
    """
    parts = []
    weights = mask.to(tokens.dtype).unsqueeze(-1)
    for mode in modes:
        if mode == "cls":
            parts.append(_token_at(tokens, mask.argmax(dim=1)))
        elif mode == "lasttoken":
            parts.append(_token_at(tokens, mask.shape[1] - 1 - mask.flip(1).argmax(dim=1)))
        elif mode == "max":
            parts.append(tokens.masked_fill(weights == 0, float("-inf")).amax(dim=1))
        elif mode in ("mean", "mean_sqrt_len_tokens"):
            count = weights.sum(dim=1).clamp(min=1e-9)
            parts.append((tokens * weights).sum(dim=1) / (count if mode == "mean" else count.sqrt()))
        elif mode == "weightedmean":
            if positions is None:
                positions = mask.cumsum(dim=1)
            rising = weights * positions.to(tokens.dtype).unsqueeze(-1)
            parts.append((tokens * rising).sum(dim=1) / rising.sum(dim=1).clamp(min=1e-9))
        else:
            raise ValueError(f"pooling mode {mode!r} is unknown; known: {', '.join(POOLING_MODES)}")
    return parts[0] if len(parts) == 1 else torch.cat(parts, dim=-1)


def without_prompt(mask: Tensor, prompt: int) -> Tensor:
    """Return `mask` with the first `prompt` real tokens of each text set to 0.

    >>> without_prompt(torch.tensor([[1, 1, 1, 0]]), 2).tolist()
    [[0, 0, 1, 0]]
    """
    return mask * (mask.cumsum(dim=1) > prompt).to(mask.dtype)


def _token_at(tokens: Tensor, index: Tensor) -> Tensor:
    return tokens[torch.arange(tokens.shape[0], device=tokens.device), index]
