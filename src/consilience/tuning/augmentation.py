"""A second view of an input that should not change what it means: for learning from a model's own predictions."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import NDArray

from consilience.errors import RequestError

__all__ = ["Augment", "augmented"]

Augment = Callable[[Any, np.random.Generator], Any]
"""Makes another view of an input with the random numbers that it is given."""

_DROPPED = 0.15  # of the words
_SHIFT = 8  # at most an eighth of the width and height
_NOISE = 0.1  # of the standard deviation


def augmented(value: Any, random: np.random.Generator) -> Any:
    """Return another view of a text or of numbers.

    >>> augmented("a list of open ports", np.random.default_rng(1))
    'a list open ports'
    >>> augmented(np.zeros((16, 16)), np.random.default_rng(1)).shape
    (16, 16)

    Of a text 15 % of the words are left out, at least one word stays. An image, (height, width) or (height, width,
    channels), is moved by up to an eighth to each side, with edges repeated, and gets noise of a tenth of its standard
    deviation, as other arrays of numbers do. Raises RequestError for anything else.
    """
    if isinstance(value, str):
        words = value.split()
        kept = [word for word, draw in zip(words, random.random(len(words)), strict=True) if draw >= _DROPPED]
        return " ".join(kept or words[:1])
    if isinstance(value, np.ndarray) and np.issubdtype(value.dtype, np.floating):
        moved = _moved(value, random) if value.ndim > 1 else value
        noise = random.standard_normal(value.shape) * (_NOISE * float(value.std()))
        return (moved + noise).astype(value.dtype)
    raise RequestError(
        f"an input is a {type(value).__name__}; give an `augment` function that makes another view of it"
    )


def _moved(image: NDArray[Any], random: np.random.Generator) -> NDArray[Any]:
    for axis in (0, 1):
        most = image.shape[axis] // _SHIFT
        step = int(random.integers(-most, most + 1))
        places = np.clip(np.arange(image.shape[axis]) - step, 0, image.shape[axis] - 1)
        image = np.take(image, places, axis=axis)
    return image
