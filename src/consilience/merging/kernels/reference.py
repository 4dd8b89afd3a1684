"""The kernels in plain NumPy: what they mean, and what the compiled ones are tested against bit for bit.

Arrays are contiguous. `work` arrays are float32 or float64; `experts` is (experts, elements). A multiplication is
rounded before the addition that follows it (no fused multiply-add), and experts are added in order.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from consilience.checkpoints import dtypes
from consilience.core.randomness import uniform_bits
from consilience.merging.kernels import BLOCK, LANES

Work = NDArray[Any]
Keep = NDArray[np.bool_]


def decode_bfloat16(raw: NDArray[np.uint16], out: Work) -> bool:
    """Write the values of stored bfloat16 numbers; return whether all are finite."""
    dtypes.decode(raw, "BF16", out)
    return bool(((raw & np.uint16(0x7F80)) != 0x7F80).all())


def decode_difference(raw: NDArray[np.uint16], base: Work, out: Work) -> bool:
    """Out = the values of stored bfloat16 numbers, minus the base; return whether all values are finite."""
    finite = decode_bfloat16(raw, out)
    out -= base
    return finite


def encode_bfloat16(values: Work, out: NDArray[np.uint16]) -> bool:
    """Round to bfloat16, once, to nearest even; return whether all results are finite."""
    dtypes.encode(values, "BF16", out)
    return bool(((out & np.uint16(0x7F80)) != 0x7F80).all())


def all_finite(values: Work) -> bool:
    """Whether no value is NaN or infinite."""
    return bool(np.isfinite(values).all())


def subtract_base(experts: Work, base: Work) -> None:
    """Turn experts into task vectors, in place."""
    experts -= base


def weighted_sum(experts: Work, weights: Work, out: Work) -> None:
    """Out = sum of weights[i] * experts[i], in the order of the experts."""
    np.multiply(experts[0], weights[0], out=out)
    for values, weight in zip(experts[1:], weights[1:], strict=True):
        out += values * weight


def add_base(total: Work, base: Work, scale: float) -> None:
    """Turn total into base + scale * total, in place; exactly the base (with its sign of zero) where total is zero."""
    unchanged = total == 0
    total *= base.dtype.type(scale)
    total += base
    np.copyto(total, base, where=unchanged)


def _keys(deltas: Work) -> NDArray[np.uint32]:
    return deltas.astype(np.float32).view(np.uint32) & np.uint32(0x7FFFFFFF)


def magnitude_histogram(deltas: Work, prefix: int, counts: NDArray[np.int64]) -> None:
    """Count magnitudes by the upper 16 bits of their float32 pattern (prefix < 0), or, among those whose upper bits
    are `prefix`, by the lower 16. `counts` has 65,536 entries.
    """
    keys = _keys(deltas)
    upper = keys >> np.uint32(16)
    chosen = upper if prefix < 0 else keys[upper == prefix] & np.uint32(0xFFFF)
    counts += np.bincount(chosen, minlength=65536)


def magnitude_window(deltas: Work, first: int, counts: NDArray[np.int64]) -> None:
    """Count whole magnitude patterns whose upper 16 bits are `first` or one of the next ones.

    `counts` has a row of 65,536 entries (the lower 16 bits) for each.
    """
    places = _keys(deltas).astype(np.int64) - (first << 16)
    chosen = places[(places >= 0) & (places < counts.size)]
    counts += np.bincount(chosen, minlength=counts.size).reshape(counts.shape)


def magnitude_trim(deltas: Work, threshold: int, quota: int) -> int:
    """Zero what is below the threshold pattern in magnitude, in place, and all but the first `quota` of the equal ones;
    return the quota used.
    """
    keys = _keys(deltas)
    equal = keys == np.uint32(threshold)
    first = equal & (np.cumsum(equal) <= quota)
    np.copyto(deltas, 0, where=~((keys > np.uint32(threshold)) | first))
    return int(first.sum())


def _drawn(key: int, start: int, threshold: int, count: int) -> Keep:
    """Whether draws `start` to `start + count` of the stream are below the threshold (of 2**32)."""
    return uniform_bits(key, start, count).astype(np.uint64) < np.uint64(threshold)


def random_drop(deltas: Work, key: int, start: int, threshold: int, scale: float) -> None:
    """Zero entry j, in place, unless draw start + j of the stream is below the threshold (of 2**32); scale the rest."""
    apply_keep(deltas, _drawn(key, start, threshold, len(deltas)), scale)


def apply_keep(deltas: Work, keep: Keep, scale: float) -> None:
    """Zero what is not kept and scale the rest, in place."""
    deltas *= deltas.dtype.type(scale)
    np.copyto(deltas, 0, where=~keep)


def consensus(deltas: Work, weights: Work, mode: int, zero_sign: int, out: Work) -> None:
    """Weigh, elect a sign per position, and combine the deltas that agree with it.

    A zero vote elects `zero_sign`. mode 0: weighted sum; 1: weighted mean (divided by the sum of the weights that
    agree, 1 where that is 0); 2: the largest weighted magnitude.
    """
    weighted = deltas * weights[:, None]
    vote = np.zeros_like(out)
    for row in weighted:
        vote += row
    positive = (vote > 0) | ((vote == 0) & (zero_sign > 0))
    out[:] = 0
    share = np.zeros_like(out)
    for row, weight in zip(weighted, weights, strict=True):
        agrees = np.where(positive, row > 0, row < 0)
        if mode == 2:
            np.copyto(out, row, where=agrees & (np.abs(row) > np.abs(out)))
        else:
            np.add(out, row, out=out, where=agrees)
            np.add(share, weight, out=share, where=agrees)
    if mode == 1:
        share[share == 0] = 1
        out /= share


def sign_counts(deltas: Work, weights: Work) -> tuple[int, int]:
    """Return at how many positions the weighted sum is above and below zero."""
    vote = np.zeros_like(deltas[0])
    for row, weight in zip(deltas, weights, strict=True):
        vote += row * weight
    return int((vote > 0).sum()), int((vote < 0).sum())


def _blocks(values: NDArray[np.float64]) -> NDArray[np.float64]:
    """Sum fixed blocks: lanes run down the block, then the lanes are added in order. The last block is zero-padded."""
    padded = np.zeros(-(-len(values) // BLOCK) * BLOCK)
    padded[: len(values)] = values
    lanes = np.add.reduce(padded.reshape(-1, BLOCK // LANES, LANES), axis=1, initial=0.0)
    total = lanes[:, 0].copy()
    for lane in range(1, LANES):
        total += lanes[:, lane]
    return total


def block_dots(a: Work, b: Work, out: NDArray[np.float64]) -> None:
    """out[j] = float64 dot product of block j of a and b."""
    out[:] = _blocks(a.astype(np.float64) * b.astype(np.float64))


def block_norms(a: Work, out: NDArray[np.float64]) -> None:
    """out[j] = float64 sum of magnitudes of block j."""
    out[:] = _blocks(np.abs(a.astype(np.float64)))


def random_block_norms(
    a: Work, key: int, start: int, threshold: int, whole: NDArray[np.float64], kept: NDArray[np.float64]
) -> None:
    """Sums of magnitudes per block, of all elements and of those a random mask keeps."""
    keep = _drawn(key, start, threshold, len(a))
    magnitude = np.abs(a.astype(np.float64))
    whole[:] = _blocks(magnitude)
    kept[:] = _blocks(np.where(keep, magnitude, 0.0))
