"""The compiled kernels give the bits of the NumPy reference, for odd sizes, zeros, ties, NaN and infinity."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from consilience.core.randomness import stream_key, uniform_bits
from consilience.merging.kernels import BLOCK, NAMES, compiled, reference

SIZES = st.sampled_from([1, 2, 7, 8, 9, 1000, BLOCK - 1, BLOCK, BLOCK + 1, 2 * BLOCK + 5])
WORK = st.sampled_from([np.float32, np.float64])


def numbers(seed, shape, dtype, *, coarse=True):
    rng = np.random.default_rng(seed)
    values = (rng.normal(size=shape) * 10.0 ** rng.integers(-6, 3)).astype(dtype)
    if coarse:  # bfloat16-like values: many ties in magnitude
        values = (values.astype(np.float32).view(np.uint32) & np.uint32(0xFFF00000)).view(np.float32).astype(dtype)
    values[rng.random(shape) < 0.2] = 0
    return values


def run_both(name, make):
    """Call both forms on fresh arguments; results and every array must agree to the byte."""
    results = []
    for module in (reference, compiled):
        arguments = make()
        with np.errstate(all="ignore"):
            returned = getattr(module, name)(*arguments)
        results.append((returned, [a.tobytes() for a in arguments if isinstance(a, np.ndarray)]))
    assert results[0] == results[1], name


@settings(deadline=None, max_examples=40)
@given(SIZES, WORK, st.integers(0, 2**31), st.integers(1, 4))
def test_compiled_equals_reference(size, dtype, seed, experts):
    deltas = numbers(seed, (experts, size), dtype)
    base = numbers(seed + 1, size, dtype, coarse=False)
    weights = np.random.default_rng(seed).normal(size=experts).astype(dtype)
    raw = np.random.default_rng(seed).integers(0, 65536, size).astype(np.uint16)
    finite = raw[(raw & 0x7F80) != 0x7F80]
    keep = np.random.default_rng(seed).random(size) < 0.5
    pattern = int(np.abs(deltas[0, size // 2]).astype(np.float32).view(np.uint32))
    blocks = -(-size // BLOCK)
    key = stream_key(seed, "t")
    run_both("decode_bfloat16", lambda: (finite, np.empty(finite.size, dtype)))
    run_both("decode_difference", lambda: (finite, base[: finite.size], np.empty(finite.size, dtype)))
    run_both("encode_bfloat16", lambda: (base.copy(), np.empty(size, np.uint16)))
    run_both("all_finite", lambda: (base,))
    run_both("subtract_base", lambda: (deltas.copy(), base))
    run_both("weighted_sum", lambda: (deltas, weights, np.empty(size, dtype)))
    run_both("add_base", lambda: (deltas[0].copy(), base, 0.7))
    run_both("magnitude_histogram", lambda: (deltas[0], -1, np.zeros(65536, np.int64)))
    run_both("magnitude_histogram", lambda: (deltas[0], pattern >> 16, np.zeros(65536, np.int64)))
    for first in (0, max(pattern >> 16, 1) - 1, 65533):
        run_both("magnitude_window", lambda f=first: (deltas[0], f, np.zeros((3, 65536), np.int64)))
    for quota in (0, 3, size):
        run_both("magnitude_trim", lambda quota=quota: (deltas[0].copy(), pattern, quota))
    run_both("magnitude_trim", lambda: (deltas[0].copy(), 0xFFFFFFFF, 0))
    for start in (0, 2**32 - 3, 2**33 + 1):
        run_both("random_drop", lambda start=start: (deltas[0].copy(), key, start, 2**31, 1.5))
    run_both("random_drop", lambda: (deltas[0].copy(), key, 0, 2**32, 1.5))
    run_both("apply_keep", lambda: (deltas[0].copy(), keep, 2.5))
    for mode in (0, 1, 2):
        for sign in (1, -1):
            run_both("consensus", lambda m=mode, s=sign: (deltas, weights, m, s, np.empty(size, dtype)))
    run_both("sign_counts", lambda: (deltas, weights))
    run_both("block_dots", lambda: (deltas[0], base, np.empty(blocks)))
    run_both("block_norms", lambda: (deltas[0], np.empty(blocks)))
    run_both("random_block_norms", lambda: (deltas[0], key, 5, 2**30, np.empty(blocks), np.empty(blocks)))


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_special_values_survive_rounding(dtype):
    values = np.array([np.nan, np.inf, -np.inf, -0.0, 0.0, 3.4e38, 1e-45, 65504.0], dtype)
    run_both("encode_bfloat16", lambda: (values.copy(), np.empty(8, np.uint16)))
    out = np.empty(8, np.uint16)
    assert compiled.encode_bfloat16(values, out) is False
    assert out[3] == 0x8000 and out[1] == 0x7F80 and (out[0] & 0x7FC0) == 0x7FC0


def test_bfloat16_rounds_once_to_nearest_even():
    # 1 + 2**-8 is half-way between two bfloat16 values: even wins; a hair more must round up even from float64
    values = np.array([1 + 2**-8, 1 + 2**-8 + 2**-40, 1 + 3 * 2**-8, 1 + 2**-8 - 2**-40], np.float64)
    out = np.empty(4, np.uint16)
    compiled.encode_bfloat16(values, out)
    assert out.tolist() == [0x3F80, 0x3F81, 0x3F82, 0x3F80]


def test_every_kernel_is_in_both_modules():
    for name in NAMES:
        assert callable(getattr(reference, name)) and callable(getattr(compiled, name)), name


def test_draws_do_not_depend_on_where_a_range_starts():
    key = stream_key(3, "tensor", "expert")
    whole = uniform_bits(key, 2**32 - 50, 100)
    parts = np.concatenate([uniform_bits(key, 2**32 - 50, 37), uniform_bits(key, 2**32 - 13, 63)])
    assert (whole == parts).all()


def test_draws_are_uniform_and_streams_are_independent():
    n = 1_000_000
    a, b = (uniform_bits(stream_key(0, "w", name), 0, n) / 2**32 for name in "ab")
    for share in (0.1, 0.5, 0.9):
        error = (share * (1 - share) / n) ** 0.5
        assert abs((a < share).mean() - share) < 4 * error
    assert abs(np.corrcoef(a, b)[0, 1]) < 4 / n**0.5
    assert abs(np.corrcoef(a[1:], a[:-1])[0, 1]) < 4 / n**0.5
    counts = np.bincount((a * 256).astype(int), minlength=256)
    chi = ((counts - n / 256) ** 2 / (n / 256)).sum()
    assert chi < 255 + 4 * (2 * 255) ** 0.5
