"""Colours of the report, light and dark: a blue-orange diverging scale that colour-blind readers can tell apart."""

from __future__ import annotations

import math

__all__ = ["STEPS", "THEMES", "step", "theme_css"]

STEPS = 4
_LIMITS = (0.5, 2.0, 5.0, 8.0)  # points at which the next colour begins

# Per theme and step: (fill, text on it). Every pair has a contrast of at least 4.5 (a test computes it).
THEMES: dict[str, dict[int, tuple[str, str]]] = {
    "light": {
        -4: ("#a34700", "#ffffff"),
        -3: ("#ee9a4d", "#1b1f24"),
        -2: ("#f9c894", "#1b1f24"),
        -1: ("#fde8d0", "#1b1f24"),
        0: ("#eef1f4", "#1b1f24"),
        1: ("#dbe9f8", "#1b1f24"),
        2: ("#aed0f2", "#1b1f24"),
        3: ("#6aa9e0", "#1b1f24"),
        4: ("#1b5fa8", "#ffffff"),
    },
    "dark": {
        -4: ("#f3a55c", "#14181d"),
        -3: ("#9c5510", "#ffffff"),
        -2: ("#6d4013", "#ffffff"),
        -1: ("#463120", "#f0f3f6"),
        0: ("#272d35", "#f0f3f6"),
        1: ("#1e3850", "#f0f3f6"),
        2: ("#1d4d7d", "#ffffff"),
        3: ("#2569ad", "#ffffff"),
        4: ("#7cbcf5", "#14181d"),
    },
}


def step(points: float) -> int:
    """Return the step of the scale for a difference in points: -4 to 4, 0 below half a point.

    >>> step(0.2), step(-3.0), step(12.0)
    (0, -2, 4)
    """
    if math.isnan(points):
        return 0
    size = sum(abs(points) >= limit for limit in _LIMITS)
    return size if points > 0 else -size


def scale_words() -> list[tuple[int, str]]:
    """Return every step with its range in words, from the largest loss to the largest gain."""
    bounds = [0.0, *_LIMITS]
    words = [(0, f"within {_LIMITS[0]:g}")]
    for size in range(1, STEPS + 1):
        upper = f" to {bounds[size + 1]:g}" if size < STEPS else " and more"
        words.insert(0, (-size, f"−{bounds[size]:g}{upper.replace(' to ', ' to −')}"))
        words.append((size, f"+{bounds[size]:g}{upper.replace(' to ', ' to +')}"))
    return words


def theme_css() -> str:
    """Return the CSS rules of the scale for both themes."""
    light = _rules(THEMES["light"])
    return f"{light}\n@media (prefers-color-scheme: dark) {{\n{_rules(THEMES['dark'])}\n}}"


def _rules(theme: dict[int, tuple[str, str]]) -> str:
    lines = []
    for number, (fill, text) in theme.items():
        name = class_name(number)
        lines.append(f"rect.{name} {{ fill: {fill}; }} text.{name} {{ fill: {text}; }}")
    return "\n".join(lines)


def class_name(number: int) -> str:
    """Return the CSS class of a step.

    >>> class_name(-2), class_name(3)
    ('loss2', 'gain3')
    """
    return f"loss{-number}" if number < 0 else f"gain{number}"
