"""The compiled kernels of rows, bands and votes give the bits of the NumPy reference, and do what they say."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from consilience.core.randomness import stream_key
from consilience.merging.kernels import ROW_NAMES, rows_compiled, rows_reference
from tests.merging.test_kernels import numbers

ROWS = st.sampled_from([1, 2, 3, 33, 63, 64, 65, 128, 1000, 4097])
WORK = st.sampled_from([np.float32, np.float64])


def run_both(name, make):
    """Call both forms on fresh arguments; results and every array must agree to the byte."""
    results = []
    for module in (rows_reference, rows_compiled):
        arguments = make()
        with np.errstate(all="ignore"):
            returned = getattr(module, name)(*arguments)
        results.append((returned, [a.tobytes() for a in arguments if isinstance(a, np.ndarray)]))
    assert results[0] == results[1], name


@settings(deadline=None, max_examples=40)
@given(ROWS, st.integers(1, 5), WORK, st.integers(0, 2**31), st.integers(1, 4), st.booleans())
def test_compiled_equals_reference(row, rows, dtype, seed, experts, coarse):
    size = row * rows
    deltas = numbers(seed, (experts, size), dtype, coarse=coarse)
    a, b = deltas[0], numbers(seed + 1, size, dtype, coarse=False)
    weights = np.random.default_rng(seed).random(experts).astype(dtype)
    high, low = sorted(np.abs(a[[0, size // 2]]).astype(np.float32).view(np.uint32).tolist(), reverse=True)
    run_both("rank_rows", lambda: (a, row, np.empty(size, np.uint32)))
    ranks = np.random.default_rng(seed).integers(0, row, size).astype(np.uint32)
    thresholds = np.linspace(0, 2**32, row).astype(np.uint64)
    for start in (0, 2**32 - 3, 2**33 + 1):
        run_both("ranked_keep", lambda s=start: (ranks, thresholds, stream_key(seed), s, np.empty(size, np.bool_)))
    for limits in (np.linspace(1e9, 4e9, row).astype(np.uint64), thresholds):
        for values in (a, b, np.where(a > 0, a, 0)):
            run_both(
                "ranked_draw", lambda v=values, t=limits: (v, row, t, stream_key(seed), 5, np.empty(size, np.bool_))
            )
    for top, keep in ((0, row), (0, row // 3), (row // 4, row // 2), (1, 1), (row // 2, row), (row, 1), (2, 0)):
        run_both("row_band", lambda t=top, k=keep: (a.copy(), row, t, k))
    for high_quota, low_quota in ((0, 0), (1, 2), (size, size)):
        run_both("magnitude_band", lambda h=high_quota, q=low_quota: (a.copy(), high, h, low, q))
        run_both("magnitude_band", lambda h=high_quota, q=low_quota: (a.copy(), 0xFFFFFFFF, h, low, q))
        run_both("magnitude_band", lambda h=high_quota, q=low_quota: (a.copy(), low, h, low, q))
    run_both("row_dots", lambda: (a, b, row, np.empty(rows)))
    run_both("row_norms", lambda: (a, row, np.empty(rows)))
    for first in (0, 1, size + 7):
        run_both("column_dots", lambda f=first: (a, b, f, np.zeros(row)))
        run_both("column_dots", lambda f=first: (a, b, f, np.zeros(1)))
    run_both("spread", lambda: (deltas, np.empty(size, np.float32)))
    for floor in (0.0, 0.5):
        run_both("elected_mean", lambda f=floor: (deltas, weights, f, np.empty(size, dtype)))


def test_every_kernel_has_both_forms():
    assert set(ROW_NAMES) == set(rows_compiled.__all__)
    assert all(callable(getattr(rows_reference, name)) for name in ROW_NAMES)


@pytest.mark.parametrize("module", [rows_reference, rows_compiled])
def test_equal_magnitudes_rank_the_lowest_index_highest(module):
    ranks = np.empty(10, np.uint32)
    module.rank_rows(np.float32([3, -1, 1, 0, 1, 5, 5, 5, 5, 5]), 5, ranks)
    assert ranks.tolist() == [4, 3, 2, 0, 1, 4, 3, 2, 1, 0]


@pytest.mark.parametrize("module", [rows_reference, rows_compiled])
@pytest.mark.parametrize(
    ("top", "keep", "kept"),
    [
        (1, 2, [0, -4, 4, 0, 0, 0]),  # one outlier, then the largest of the rest
        (2, 2, [0, -4, 0, 0, 3, 0]),  # of the equal outliers the lowest index stays
        (0, 2, [9, -4, 0, 0, 0, 0]),
        (5, 3, [0, 0, 0, 0, 0, 1]),
        (6, 3, [0, 0, 0, 0, 0, 0]),
        (1, 0, [0, 0, 0, 0, 0, 0]),
    ],
)
def test_band_of_a_row(module, top, keep, kept):
    values = np.float32([9, -4, 4, 2, 3, 1])
    module.row_band(values, 6, top, keep)
    assert values.tolist() == kept


@pytest.mark.parametrize("module", [rows_reference, rows_compiled])
def test_band_among_equals_keeps_the_lowest_indices(module):
    values = np.ones(10, np.float32)
    module.row_band(values, 10, 2, 5)
    assert values.tolist() == [1] * 5 + [0] * 5


@pytest.mark.parametrize("module", [rows_reference, rows_compiled])
def test_spread_of_equal_experts_is_exactly_zero(module):
    deltas = np.repeat(np.float32([[0.1, 1e-20, -3.3]]), 7, axis=0)
    out = np.ones(3, np.float32)
    module.spread(deltas, out)
    assert out.tolist() == [0, 0, 0]
    module.spread(np.float32([[1e-30, 1], [3e-30, 5]]), out[:2])
    assert out[:2] == pytest.approx([1e-30, 2])
