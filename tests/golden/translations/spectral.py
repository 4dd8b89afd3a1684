"""Spectral methods: TSV-M, Iso-C, Iso-CTS, R-TSVM, KnOTS."""

from __future__ import annotations

from collections.abc import Mapping
from fractions import Fraction
from typing import Any

from tests.golden.translate import Translation, Untranslated, choose, fixed, plain, same

ISO = "danielm1405/iso-merging"
DEFINITION = (
    "project definition: no official code was found and the paper's equations were not available; follows the abstract "
    "(outlier-aware weighting, sparsity-adaptive rank) on top of TSV-M"
)


def _one_per_expert(value: str, experts: int) -> dict[str, Any]:
    """The reference's share of the directions that an expert keeps, which we do not leave open."""
    if Fraction(value) != Fraction(1, experts):
        raise Untranslated(f"sv_reduction {value} with {experts} experts; only 1/{experts} can be said")
    return {}


def _variant(value: str, experts: int) -> dict[str, Any]:
    """Two ways to compute the same polar factor."""
    if not value.startswith("TSVM"):
        raise Untranslated(f"variant {value!r}")
    return {}


def _share(value: float, experts: int) -> dict[str, Any]:
    """The reference reads numbers above 1 as percent."""
    return {"density": min(value / 100 if value > 1 else value, 1.0)}


TABLE: Mapping[tuple[str, str], Translation] = {
    ("tsv", "AntoAndGar/task_singular_vectors"): Translation(
        {"alpha": same("alpha"), "sv_reduction": _one_per_expert, "variant": _variant}
    ),
    ("iso_c", ISO): Translation(plain("alpha")),
    ("iso_cts", ISO): Translation(plain("alpha", "common_space_fraction")),
    ("r_tsvm", DEFINITION): Translation(plain("alpha", "gamma", "eps_rel", "outlier_power", "n_sigma")),
    ("knots", "gstoica27/KnOTS"): Translation(
        {
            **plain("concat_across_output", "singular_value_threshold"),
            "merge_method": choose("merge_method", {"ties": "ties", "tv": "task_arithmetic"}),
            "topK": _share,
            "merging_type": choose("merge_function", {"mean": "mean", "sum": "sum"}),
            "scaling_coeffs": same("lambda"),
            "sign_resolve_mode": fixed("sum_of_values"),
        }
    ),
}
