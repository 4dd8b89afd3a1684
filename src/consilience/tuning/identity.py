"""What a resumed run compares: the content of weights and of examples."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import xxhash

from consilience.errors import RequestError
from consilience.tuning.statistic import current

if TYPE_CHECKING:
    from consilience.models.model import Predictor

__all__ = ["examples_hash", "weights_hash"]


def weights_hash(model: Predictor) -> str:
    """Return the xxh3 of all parameters with their names."""
    import torch

    digest = xxhash.xxh3_64()
    for name, value in sorted(current(model).items()):
        digest.update(f"{name} {value.dtype} {tuple(value.shape)}".encode())
        digest.update(value.cpu().contiguous().reshape(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()


def examples_hash(examples: Iterable[Any]) -> str:
    """Return the xxh3 of examples: texts, numbers, arrays, tensors, and sequences and mappings of them.

    >>> examples_hash(["a", ("b", 1)]) == examples_hash(("a", ["b", 1]))
    True
    >>> examples_hash(["ab"]) == examples_hash(["a", "b"])
    False
    """
    digest = xxhash.xxh3_64()
    for example in examples:
        _update(digest, example)
    return digest.hexdigest()


def _update(digest: Any, value: Any) -> None:
    if hasattr(value, "detach"):
        value = value.detach().cpu().numpy()
    if isinstance(value, np.ndarray):
        digest.update(f"a{value.dtype}{value.shape};".encode())
        digest.update(np.ascontiguousarray(value).reshape(-1).view(np.uint8).data)
    elif isinstance(value, str | bytes):
        data = value.encode() if isinstance(value, str) else value
        digest.update(f"s{len(data)};".encode())
        digest.update(data)
    elif value is None or isinstance(value, bool | int | float | np.generic):
        digest.update(f"n{value!r};".encode())
    elif isinstance(value, Mapping):
        _update(digest, [part for key in sorted(value) for part in (key, value[key])])
    elif isinstance(value, Sequence):
        digest.update(f"l{len(value)};".encode())
        for part in value:
            _update(digest, part)
    else:
        raise RequestError(
            f"an example holds a {type(value).__name__}; examples are texts, numbers, arrays, tensors, or sequences "
            "and mappings of them"
        )
