"""Coefficients and statistics from data."""

from __future__ import annotations

from consilience.tuning.statistics import KINDS, gather_statistics

__all__ = ["KINDS", "gather_statistics"]
