from __future__ import annotations

import numpy as np
import pytest
import torch

from consilience.models.folder import POOLING_MODES
from consilience.models.pooling import pool, without_prompt


def reference(real: np.ndarray, mode: str) -> np.ndarray:
    """Pool the real tokens of one text."""
    count = len(real)
    weights = np.arange(1, count + 1)[:, None]
    return {
        "cls": lambda: real[0],
        "lasttoken": lambda: real[-1],
        "max": lambda: real.max(0),
        "mean": lambda: real.mean(0),
        "mean_sqrt_len_tokens": lambda: real.sum(0) / np.sqrt(count),
        "weightedmean": lambda: (real * weights).sum(0) / weights.sum(),
    }[mode]()


@pytest.mark.parametrize("left", [False, True])
@pytest.mark.parametrize("mode", list(POOLING_MODES))
def test_each_mode_sees_only_real_tokens(mode: str, left: bool) -> None:
    random = np.random.default_rng(0)
    tokens = random.normal(size=(4, 6, 5))
    lengths = [6, 1, 3, 4]
    mask = np.zeros((4, 6), np.int64)
    for row, length in enumerate(lengths):
        mask[row, 6 - length :] = left
        mask[row, :length] |= not left
    found = pool(torch.from_numpy(tokens), torch.from_numpy(mask), [mode]).numpy()
    wanted = np.stack([reference(tokens[row][mask[row] == 1], mode) for row in range(4)])
    np.testing.assert_allclose(found, wanted, rtol=1e-12)


def test_modes_are_joined_in_order() -> None:
    tokens = torch.arange(12.0).reshape(1, 3, 4)
    mask = torch.ones(1, 3, dtype=torch.int64)
    joined = pool(tokens, mask, ["max", "cls"])
    assert joined.tolist() == [[8.0, 9.0, 10.0, 11.0, 0.0, 1.0, 2.0, 3.0]]


def test_prompt_tokens_are_left_out_on_both_sides_of_padding() -> None:
    mask = torch.tensor([[1, 1, 1, 1, 0], [0, 1, 1, 1, 1]])
    assert without_prompt(mask, 3).tolist() == [[0, 0, 0, 1, 0], [0, 0, 0, 0, 1]]


def test_unknown_mode_is_an_error() -> None:
    with pytest.raises(ValueError, match="'median' is unknown; known: cls"):
        pool(torch.zeros(1, 1, 1), torch.ones(1, 1), ["median"])
