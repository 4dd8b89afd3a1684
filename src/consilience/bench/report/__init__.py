"""The report: one self-contained HTML page with inline CSS and SVG, nothing loaded from anywhere."""

from __future__ import annotations

from consilience.bench.report.page import render

__all__ = ["render"]
