"""Inner loops of merging: one NumPy reference, one compiled form, the same bits from both.

`kernels()` gives the compiled ones; `CONSILIENCE_KERNELS=numpy` gives the reference (slower, nothing compiled).
"""

from __future__ import annotations

import os
from functools import lru_cache
from importlib import import_module
from typing import Any

__all__ = [
    "BLOCK",
    "CHANGE_NAMES",
    "COMPETITION_NAMES",
    "LANES",
    "NAMES",
    "ROW_NAMES",
    "change_kernels",
    "competition_kernels",
    "kernels",
    "row_kernels",
]

BLOCK = 4096
"""Elements per partial sum: reductions run over these fixed blocks, so the chunk size never matters."""

LANES = 64
"""Running sums per block, added up in order at its end."""

NAMES = (
    "decode_bfloat16",
    "decode_difference",
    "encode_bfloat16",
    "all_finite",
    "subtract_base",
    "weighted_sum",
    "add_base",
    "magnitude_histogram",
    "magnitude_trim",
    "magnitude_window",
    "random_drop",
    "apply_keep",
    "consensus",
    "sign_counts",
    "block_dots",
    "block_norms",
    "random_block_norms",
)

ROW_NAMES = (
    "rank_rows",
    "ranked_draw",
    "ranked_keep",
    "row_band",
    "magnitude_band",
    "row_dots",
    "row_norms",
    "column_dots",
    "spread",
    "elected_mean",
)

COMPETITION_NAMES = ("competition_scores", "coefficients", "balanced_sum")

CHANGE_NAMES = ("count_changes", "changed_mean", "deviation_mean", "row_divergence")


def _form() -> str:
    return "reference" if os.environ.get("CONSILIENCE_KERNELS", "numba") == "numpy" else "compiled"


@lru_cache(maxsize=1)
def kernels() -> Any:
    """Return the module with the kernels in use."""
    return import_module(f"consilience.merging.kernels.{_form()}")


@lru_cache(maxsize=1)
def row_kernels() -> Any:
    """Return the module with the kernels in use for rows, bands of magnitude and votes."""
    return import_module(f"consilience.merging.kernels.rows_{_form()}")


@lru_cache(maxsize=1)
def change_kernels() -> Any:
    """Return the module with the kernels in use that look at each change of each expert."""
    return import_module(f"consilience.merging.kernels.changes_{_form()}")


@lru_cache(maxsize=1)
def competition_kernels() -> Any:
    """Return the module with the kernels in use for parameter competition."""
    return import_module(f"consilience.merging.kernels.competition_{_form()}")
