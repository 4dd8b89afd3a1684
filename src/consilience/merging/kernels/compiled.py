"""The kernels compiled by numba; each gives the bits of its namesake in `reference`.

Loops are written so that the compiler can use vector instructions: no branches on data where a select will do, no
reassociation (fastmath stays off), slices instead of sums of indices, 32-bit integers cast back after every step
(numba widens them to 64). A select is never stored where its operand was read: that becomes a masked store, which is
slow on many processors. Code is cached on disk; every kernel releases the interpreter lock.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from consilience.merging.kernels.compiled_sums import block_dots, block_norms, random_block_norms, random_drop
from consilience.merging.kernels.jit import jit

__all__ = [
    "add_base",
    "all_finite",
    "apply_keep",
    "block_dots",
    "block_norms",
    "consensus",
    "decode_bfloat16",
    "decode_difference",
    "encode_bfloat16",
    "magnitude_histogram",
    "magnitude_trim",
    "magnitude_window",
    "random_block_norms",
    "random_drop",
    "sign_counts",
    "subtract_base",
    "weighted_sum",
]

Work = NDArray[Any]
Keep = NDArray[np.bool_]

_TILE = 1024  # elements of a temporary; a few of them stay in the first-level cache
_MAGNITUDE = np.uint32(0x7FFFFFFF)
_HALF = np.uint32(16)


@jit
def _decode_bits(raw: Any, out: Any) -> bool:
    worst = np.uint16(0)
    for j in range(raw.size):
        x = raw[j]
        out[j] = np.uint32(np.uint32(x) << _HALF)
        worst = max(worst, np.uint16(x & np.uint16(0x7F80)))
    return worst != np.uint16(0x7F80)


@jit
def _convert(values: Any, out: Any) -> None:
    for j in range(values.size):
        out[j] = values[j]


def decode_bfloat16(raw: NDArray[np.uint16], out: Work) -> bool:
    """Write the values of stored bfloat16 numbers; return whether all are finite."""
    if out.dtype == np.float32:
        return bool(_decode_bits(raw, out.view(np.uint32)))
    single = np.empty(raw.size, np.float32)
    finite = _decode_bits(raw, single.view(np.uint32))
    _convert(single, out)
    return bool(finite)


@jit
def _decode_difference(raw: Any, base: Any, out: Any) -> bool:
    worst = np.uint16(0)
    for first in range(0, raw.size, _TILE):
        source, minus, part = raw[first : first + _TILE], base[first : first + _TILE], out[first : first + _TILE]
        for j in range(source.size):
            worst = max(worst, np.uint16(source[j] & np.uint16(0x7F80)))
        for j in range(source.size):
            part[j] = np.uint32(np.uint32(source[j]) << _HALF).view(np.float32) - minus[j]
    return worst != np.uint16(0x7F80)


def decode_difference(raw: NDArray[np.uint16], base: Work, out: Work) -> bool:
    """Out = the values of stored bfloat16 numbers, minus the base; return whether all values are finite."""
    return bool(_decode_difference(raw, base, out))


@jit
def _encode_bits(bits: Any, out: Any) -> bool:
    worst = np.uint32(0)
    for j in range(bits.size):
        x = bits[j]
        upper = np.uint32(x >> _HALF)
        rounded = np.uint32(np.uint32(x + np.uint32(np.uint32(0x7FFF) + np.uint32(upper & np.uint32(1)))) >> _HALF)
        quiet = np.uint32(upper | np.uint32(0x40))
        rounded = quiet if np.uint32(x & _MAGNITUDE) > np.uint32(0x7F800000) else rounded
        out[j] = rounded
        worst = max(worst, np.uint32(rounded & np.uint32(0x7F80)))
    return worst != np.uint32(0x7F80)


@jit
def _round_to_odd(values: Any, single: Any, bits: Any) -> None:
    for j in range(values.size):
        x = values[j]
        s = np.float32(x)
        single[j] = s
        back = np.float64(s)
        if back != x and np.isfinite(s):
            if abs(back) > abs(x):
                bits[j] -= 1
            bits[j] |= 1


def encode_bfloat16(values: Work, out: NDArray[np.uint16]) -> bool:
    """Round to bfloat16, once, to nearest even; return whether all results are finite."""
    if values.dtype == np.float32:
        return bool(_encode_bits(values.view(np.uint32), out))
    single = np.empty(values.size, np.float32)
    _round_to_odd(values, single, single.view(np.int32))
    return bool(_encode_bits(single.view(np.uint32), out))


@jit
def _all_finite(values: Any) -> bool:
    bad = 0
    for j in range(values.size):
        bad += 0 if np.isfinite(values[j]) else 1
    return bad == 0


def all_finite(values: Work) -> bool:
    """Whether no value is NaN or infinite."""
    return bool(_all_finite(values))


@jit
def subtract_base(experts: Any, base: Any) -> None:
    """Turn experts into task vectors, in place."""
    for i in range(experts.shape[0]):
        row = experts[i]
        for j in range(row.size):
            row[j] -= base[j]


@jit
def weighted_sum(experts: Any, weights: Any, out: Any) -> None:
    """Out = sum of weights[i] * experts[i], in the order of the experts."""
    odd = experts.shape[0] % 2
    for first in range(0, out.size, _TILE):
        part = out[first : first + _TILE]
        row, other = experts[0, first : first + _TILE], experts[1 - odd, first : first + _TILE]
        weight, second = weights[0], weights[1 - odd]
        if odd:
            for j in range(part.size):
                part[j] = row[j] * weight
        else:
            for j in range(part.size):
                part[j] = row[j] * weight + other[j] * second
        for i in range(2 - odd, experts.shape[0], 2):  # two at a time: half the loads and stores
            row, other = experts[i, first : first + _TILE], experts[i + 1, first : first + _TILE]
            weight, second = weights[i], weights[i + 1]
            for j in range(part.size):
                part[j] = part[j] + row[j] * weight + other[j] * second


@jit
def _add_base(total: Any, base: Any, scale: Any, zero: Any) -> None:
    for j in range(total.size):
        t = total[j]
        total[j] = base[j] if t == zero else t * scale + base[j]


def add_base(total: Work, base: Work, scale: float) -> None:
    """Turn total into base + scale * total, in place; exactly the base (with its sign of zero) where total is zero."""
    _add_base(total, base, base.dtype.type(scale), base.dtype.type(0))


def _float_bits(values: Work) -> NDArray[np.uint32]:
    """Return the float32 patterns of values."""
    if values.dtype == np.float32:
        return values.view(np.uint32)
    single = np.empty(values.size, np.float32)
    _convert(values, single)
    return single.view(np.uint32)


@jit
def _upper_histogram(bits: Any, counts: Any) -> None:
    for j in range(bits.size):
        counts[np.uint64(np.uint32(np.uint32(bits[j] & _MAGNITUDE) >> _HALF))] += 1


@jit
def _lower_histogram(bits: Any, prefix: Any, counts: Any) -> None:
    chosen = np.empty(_TILE, np.uint32)
    for first in range(0, bits.size, _TILE):
        part = bits[first : first + _TILE]
        found = np.uint64(0)
        for j in range(part.size):
            key = np.uint32(part[j] & _MAGNITUDE)
            chosen[found] = key
            found += np.uint64(np.uint32(key >> _HALF) == prefix)
        for j in range(found):
            counts[np.uint64(np.uint32(chosen[j] & np.uint32(0xFFFF)))] += 1


def magnitude_histogram(deltas: Work, prefix: int, counts: NDArray[np.int64]) -> None:
    """Count magnitudes by the upper 16 bits of their float32 pattern, or by the lower 16 behind `prefix`."""
    if prefix < 0:
        _upper_histogram(_float_bits(deltas), counts)
    else:
        _lower_histogram(_float_bits(deltas), np.uint32(prefix), counts)


@jit
def _window(bits: Any, origin: Any, span: Any, counts: Any) -> None:
    chosen = np.empty(_TILE, np.uint32)
    for first in range(0, bits.size, _TILE):
        part = bits[first : first + _TILE]
        found = np.uint64(0)
        for j in range(part.size):
            place = np.uint32(np.uint32(part[j] & _MAGNITUDE) - origin)  # wraps around below the window
            chosen[found] = place
            found += np.uint64(place < span)
        for j in range(found):
            counts[np.uint64(chosen[j])] += 1


def magnitude_window(deltas: Work, first: int, counts: NDArray[np.int64]) -> None:
    """Count whole magnitude patterns whose upper 16 bits are `first` or one of the next ones; see the reference."""
    _window(_float_bits(deltas), np.uint32(first << 16), np.uint32(counts.size), counts.reshape(-1))


@jit
def _magnitude_trim(deltas: Any, bits: Any, limit: Any, quota: int, zero: Any) -> Any:
    cut = np.empty(_TILE, deltas.dtype)
    used = np.int64(0)
    for first in range(0, bits.size, _TILE):
        keys, part = bits[first : first + _TILE], deltas[first : first + _TILE]
        equal = np.uint32(0)
        for j in range(keys.size):
            equal = np.uint32(equal + (np.uint32(1) if np.uint32(keys[j] & _MAGNITUDE) == limit else np.uint32(0)))
        lowest = limit
        if used + equal <= quota:
            used += np.int64(equal)
        elif used >= quota:
            lowest = np.uint32(limit + np.uint32(1))
        else:
            for j in range(keys.size):
                if np.uint32(keys[j] & _MAGNITUDE) == limit:
                    if used < quota:
                        used += 1
                    else:
                        part[j] = zero
        for j in range(keys.size):
            cut[j] = part[j] if np.uint32(keys[j] & _MAGNITUDE) >= lowest else zero
        for j in range(keys.size):
            part[j] = cut[j]
    return used


def magnitude_trim(deltas: Work, threshold: int, quota: int) -> int:
    """Zero what is below the threshold pattern in magnitude, in place, and all but `quota` of the equal ones; return
    the quota used.
    """
    bits = _float_bits(deltas)
    return int(_magnitude_trim(deltas, bits, np.uint32(threshold), quota, deltas.dtype.type(0)))


@jit
def _apply_keep(deltas: Any, keep: Any, scale: Any, zero: Any) -> None:
    for j in range(deltas.size):
        value = deltas[j] * scale
        deltas[j] = value if keep[j] else zero


def apply_keep(deltas: Work, keep: Keep, scale: float) -> None:
    """Zero what is not kept and scale the rest, in place."""
    _apply_keep(deltas, keep, deltas.dtype.type(scale), deltas.dtype.type(0))


@jit
def _elect(deltas: Any, weights: Any, first: int, zero_positive: bool, zero: Any, one: Any, vote: Any) -> None:
    """Vote = the sign of the weighted sum, 1 or -1, from element `first` on."""
    odd = deltas.shape[0] % 2
    row, weight = deltas[0, first : first + vote.size], weights[0]
    for j in range(vote.size):
        vote[j] = row[j] * weight if odd else zero
    for i in range(odd, deltas.shape[0], 2):  # two at a time: half the loads and stores
        row, other = deltas[i, first : first + vote.size], deltas[i + 1, first : first + vote.size]
        weight, second = weights[i], weights[i + 1]
        for j in range(vote.size):
            vote[j] = vote[j] + row[j] * weight + other[j] * second
    if zero_positive:
        for j in range(vote.size):
            vote[j] = one if vote[j] >= zero else -one
    else:
        for j in range(vote.size):
            vote[j] = one if vote[j] > zero else -one


@jit
def _agreeing_sum(deltas: Any, weights: Any, first: int, vote: Any, zero: Any, part: Any) -> None:
    """Part = sum of the weighted deltas that have the elected sign."""
    odd = deltas.shape[0] % 2
    row, weight = deltas[0, first : first + part.size], weights[0]
    for j in range(part.size):
        value = row[j] * weight
        part[j] = value if odd and value * vote[j] > zero else zero
    for i in range(odd, deltas.shape[0], 2):
        row, other = deltas[i, first : first + part.size], deltas[i + 1, first : first + part.size]
        weight, second = weights[i], weights[i + 1]
        for j in range(part.size):
            sign = vote[j]
            value, next_value = row[j] * weight, other[j] * second
            total = part[j] + (value if value * sign > zero else zero)
            part[j] = total + (next_value if next_value * sign > zero else zero)


@jit
def _agreeing_weight(deltas: Any, weights: Any, first: int, vote: Any, zero: Any, share: Any) -> None:
    """Share = sum of the weights of the deltas that have the elected sign."""
    for j in range(share.size):
        share[j] = zero
    for i in range(deltas.shape[0]):
        row, weight = deltas[i, first : first + share.size], weights[i]
        for j in range(share.size):
            share[j] += weight if row[j] * weight * vote[j] > zero else zero


@jit
def _consensus_sum(deltas: Any, weights: Any, mean: bool, zero_positive: bool, zero: Any, one: Any, out: Any) -> None:
    votes, shares = np.empty(_TILE, out.dtype), np.empty(_TILE, out.dtype)
    for first in range(0, out.size, _TILE):
        part = out[first : first + _TILE]
        vote, share = votes[: part.size], shares[: part.size]
        _elect(deltas, weights, first, zero_positive, zero, one, vote)
        _agreeing_sum(deltas, weights, first, vote, zero, part)
        if mean:
            _agreeing_weight(deltas, weights, first, vote, zero, share)
            for j in range(part.size):
                part[j] /= share[j] if share[j] != zero else one


@jit
def _consensus_max(deltas: Any, weights: Any, zero_positive: bool, zero: Any, one: Any, out: Any) -> None:
    votes, first_best, second_best = (
        np.empty(_TILE, out.dtype),
        np.empty(_TILE, out.dtype),
        np.empty(_TILE, out.dtype),
    )
    for first in range(0, out.size, _TILE):
        part = out[first : first + _TILE]
        vote, best, spare = votes[: part.size], first_best[: part.size], second_best[: part.size]
        _elect(deltas, weights, first, zero_positive, zero, one, vote)
        for j in range(part.size):
            best[j] = zero
        for i in range(deltas.shape[0]):
            row = deltas[i, first : first + part.size]
            weight = weights[i]
            for j in range(part.size):
                value = row[j] * weight * vote[j]
                spare[j] = value if value > best[j] else best[j]
            best, spare = spare, best
        for j in range(part.size):
            part[j] = best[j] * vote[j] + zero


def consensus(deltas: Work, weights: Work, mode: int, zero_sign: int, out: Work) -> None:
    """Weigh, elect a sign per position, and combine the deltas that agree with it; see the reference."""
    number = out.dtype.type
    if mode == 2:
        _consensus_max(deltas, weights, zero_sign > 0, number(0), number(1), out)
    else:
        _consensus_sum(deltas, weights, mode == 1, zero_sign > 0, number(0), number(1), out)


@jit
def _sign_counts(deltas: Any, weights: Any, zero: Any) -> tuple[int, int]:
    votes = np.empty(_TILE, deltas.dtype)
    above, below = 0, 0
    for first in range(0, deltas.shape[1], _TILE):
        vote = votes[: min(_TILE, deltas.shape[1] - first)]
        for j in range(vote.size):
            vote[j] = zero
        for i in range(deltas.shape[0]):
            row = deltas[i, first : first + vote.size]
            weight = weights[i]
            for j in range(vote.size):
                vote[j] += row[j] * weight
        for j in range(vote.size):
            above += 1 if vote[j] > zero else 0
            below += 1 if vote[j] < zero else 0
    return above, below


def sign_counts(deltas: Work, weights: Work) -> tuple[int, int]:
    """Return at how many positions the weighted sum is above and below zero."""
    above, below = _sign_counts(deltas, weights, deltas.dtype.type(0))
    return int(above), int(below)
