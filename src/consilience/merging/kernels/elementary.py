"""Exponential and logarithm from additions, multiplications and divisions alone: the same bits on every machine.

NumPy's and the C library's differ in the last digit between processors and versions.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

__all__ = ["exponential", "logarithm"]

Numbers = NDArray[np.float64]

LOG2E = 1.4426950408889634
LN2_HIGH = 0.6931471803691238  # its last 21 bits are zero, so that multiples of it are exact
LN2_LOW = 1.9082149292705877e-10
LN2 = 0.6931471805599453
ROUND = 6755399441055744.0  # 1.5 * 2**52: adding it rounds to a whole number, which the lowest bits then hold
LOWEST = -708.0  # the exponential of less is below the normal numbers
EXPONENTIAL = tuple(1.0 / f for f in (39916800, 3628800, 362880, 40320, 5040, 720, 120, 24, 6, 2, 1, 1))
LOGARITHM = tuple(1.0 / odd for odd in (17, 15, 13, 11, 9, 7, 5, 3, 1))
BIAS = np.uint64(1023)
EXPONENT = np.uint64(52)
FRACTION = np.uint64(0x000FFFFFFFFFFFFF)
ROOT_HALF = np.uint64(0x3FE6A09E667F3BCD)
CENTRE = np.uint64(0x3FF0000000000000 - 0x3FE6A09E667F3BCD)
TWO_52 = np.uint64(0x4330000000000000)
TWO_52_AND_BIAS = 4503599627371519.0


def exponential(x: Numbers) -> Numbers:
    """Return e**x for x <= 0, within 1e-14; exactly 1 for 0, and 3e-308 for all x below -708.

    >>> exponential(np.array([0.0, -1.0])).round(12).tolist()
    [1.0, 0.367879441171]
    """
    x = np.maximum(x, LOWEST)
    shifted = x * LOG2E + ROUND
    whole = shifted - ROUND
    rest = x - whole * LN2_HIGH - whole * LN2_LOW
    result = np.full_like(x, EXPONENTIAL[0])
    for factor in EXPONENTIAL[1:]:
        result = result * rest + factor
    power: Numbers = ((shifted.view(np.uint64) + BIAS) << EXPONENT).view(np.float64)
    return result * power


def logarithm(x: Numbers) -> Numbers:
    """Return the natural logarithm of normal numbers above 0, within 1e-14; exactly 0 for 1.

    >>> logarithm(np.array([1.0, 10.0])).round(12).tolist()
    [0.0, 2.302585092994]
    """
    centred = x.view(np.uint64) + CENTRE
    exponent = ((centred >> EXPONENT) | TWO_52).view(np.float64) - TWO_52_AND_BIAS
    part = ((centred & FRACTION) + ROOT_HALF).view(np.float64) - 1.0
    s = part / (part + 2.0)
    square = s * s
    result = np.full_like(x, LOGARITHM[0])
    for factor in LOGARITHM[1:]:
        result = result * square + factor
    return exponent * LN2 + (s + s) * result
