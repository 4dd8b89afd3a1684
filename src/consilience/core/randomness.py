"""Counter-based randomness: a draw is a function of (seed, names, index), never of execution order.

Each stream has a 64-bit key, the xxh3 hash of the seed and the names; the draw at an index is two rounds of a
32-bit integer finaliser over the index and the two halves of the key. The finaliser is the public "lowbias32"
permutation (multipliers 0x7feb352d and 0x846ca68b, found by Chris Wellons' hash prospector, 2018).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TypeVar

import numpy as np
import xxhash
from numpy.typing import NDArray

__all__ = ["draw_some", "keep_threshold", "stream_key", "uniform_bits"]

Item = TypeVar("Item")

_M1 = np.uint32(0x7FEB352D)
_M2 = np.uint32(0x846CA68B)


def stream_key(seed: int, *names: str) -> int:
    """Return the 64-bit key of the stream named by `seed` and `names`.

    >>> stream_key(0, "layer.weight", "a") != stream_key(0, "layer.weight", "b")
    True
    """
    text = "\0".join((str(int(seed)), *names))
    return xxhash.xxh3_64_intdigest(text.encode())


def draw_some(items: Sequence[Item], count: int, seed: int, *names: str) -> list[Item]:
    """Return at most `count` of the items, drawn without repetition, in the order of the draw.

    >>> sorted(draw_some("abc", 5, 0, "letters"))
    ['a', 'b', 'c']
    """
    order = np.random.Generator(np.random.Philox(stream_key(seed, *names))).permutation(len(items))
    return [items[place] for place in order[:count].tolist()]


def _mix(x: NDArray[np.uint32]) -> None:
    for shift, multiplier in ((16, _M1), (15, _M2)):
        x ^= x >> np.uint32(shift)
        x *= multiplier
    x ^= x >> np.uint32(16)


def uniform_bits(key: int, start: int, count: int) -> NDArray[np.uint32]:
    """Return draws `start` to `start + count` of a stream, each uniform over 32 bits.

    >>> draws = uniform_bits(stream_key(7, "t", "e"), 0, 6)
    >>> (draws[2:5] == uniform_bits(stream_key(7, "t", "e"), 2, 3)).all()
    np.True_

    Indices reach 2**63; the upper half of an index is folded into the key.
    """
    index = np.arange(start, start + count, dtype=np.uint64)
    low = (index & np.uint64(0xFFFFFFFF)).astype(np.uint32)
    high = (index >> np.uint64(32)).astype(np.uint32)
    low ^= np.uint32(key & 0xFFFFFFFF)
    _mix(low)
    low ^= np.uint32(key >> 32)
    low += high * np.uint32(0x9E3779B9)
    _mix(low)
    return low


def keep_threshold(probability: float) -> int:
    """Return T in [0, 2**32] such that a draw below T has the given probability (to 2**-32).

    >>> keep_threshold(0.5) == 2**31, keep_threshold(1.0) == 2**32
    (True, True)
    """
    return min(max(round(probability * 4294967296.0), 0), 1 << 32)
