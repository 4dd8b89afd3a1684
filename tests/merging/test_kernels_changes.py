"""The compiled kernels of changes give the bits of the NumPy reference, and both say what they should."""

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from consilience.merging.kernels import CHANGE_NAMES, changes_compiled, changes_reference
from consilience.merging.kernels.elementary import exponential, logarithm
from tests.merging.test_kernels import SIZES, WORK, numbers
from tests.merging.test_kernels_rows import ROWS

BOTH = pytest.mark.parametrize("module", [changes_reference, changes_compiled])


def run_both(name, make):
    """Call both forms on fresh arguments; results and every array must agree to the byte."""
    results = []
    for module in (changes_reference, changes_compiled):
        arguments = make()
        with np.errstate(all="ignore"):
            returned = getattr(module, name)(*arguments)
        results.append((returned, [a.tobytes() for a in arguments if isinstance(a, np.ndarray)]))
    assert results[0] == results[1], name


@settings(deadline=None, max_examples=40)
@given(SIZES, WORK, st.integers(0, 2**31), st.integers(1, 4), st.sampled_from([0.0, 1e-3, 0.5]))
def test_compiled_equals_reference(size, dtype, seed, experts, epsilon):
    deltas = numbers(seed, (experts, size), dtype)
    scales = np.linspace(0.5, 1.5, experts).astype(dtype)
    run_both("count_changes", lambda: (deltas, epsilon, np.ones((2, experts), np.int64)))
    run_both("changed_mean", lambda: (deltas, epsilon, scales, np.empty(size, dtype)))
    for inverse in (False, True):
        run_both("deviation_mean", lambda i=inverse: (deltas, i, np.empty(size, dtype)))


@settings(deadline=None, max_examples=25)
@given(ROWS, st.integers(1, 4), WORK, st.integers(0, 2**31), st.sampled_from([1e-3, 1.0, 300.0]))
def test_divergence_equals_reference(row, rows, dtype, seed, scale):
    rng = np.random.default_rng(seed)
    a = (scale * rng.normal(size=row * rows)).astype(dtype)
    b = (a + scale * 0.1 * rng.normal(size=a.size)).astype(dtype)
    run_both("row_divergence", lambda: (a, b, row, np.empty(rows)))


def test_every_kernel_has_both_forms():
    assert set(CHANGE_NAMES) == set(changes_compiled.__all__)
    assert all(callable(getattr(changes_reference, name)) for name in CHANGE_NAMES)


def test_exponential_and_logarithm_are_right_to_fourteen_digits():
    x = -np.random.default_rng(0).exponential(20, 20_000)
    assert exponential(x) == pytest.approx(np.exp(x), rel=2e-14)
    assert exponential(np.array([0.0, -750.0, -np.inf])).tolist() == [1.0, *[pytest.approx(math.exp(-708))] * 2]
    y = np.exp(np.random.default_rng(1).normal(0, 30, 20_000))
    assert logarithm(y) == pytest.approx(np.log(y), rel=1e-14, abs=1e-15)
    near = 1 + 1e-9 * np.arange(-50, 50)
    assert logarithm(near) == pytest.approx(np.log(near), rel=1e-12)


@BOTH
def test_divergence_of_known_distributions(module):
    out = np.empty(2)
    a, b = np.log(np.array([0.5, 0.5, 0.5, 0.5])), np.log(np.array([0.25, 0.75, 0.5, 0.5]))
    module.row_divergence(a, b, 2, out)
    assert out[0] == pytest.approx(0.25 * math.log(0.5) + 0.75 * math.log(1.5), rel=1e-6) and out[1] == 0
    module.row_divergence(np.float64([0, 0]), np.float64([0, -1000]), 2, out[:1])
    assert out[0] == pytest.approx(math.log(2), rel=1e-6)  # finite although a probability is 0


@BOTH
def test_counts_and_means_of_changes(module):
    deltas = np.float32([[2, 1, 0, 0.25], [0, 3, 0, -4]])
    counts, out = np.zeros((2, 2), np.int64), np.empty(4, np.float32)
    module.count_changes(deltas, 0.5, counts)
    assert counts.tolist() == [[1, 1], [1, 1]]
    module.changed_mean(deltas, 0.5, np.float32([2, 1.5]), out)
    assert out.tolist() == [4, 2, 0, -6]


@BOTH
def test_means_by_deviation(module):
    deltas, out = np.float64([[3, 0, 0, 1], [1, 2, 0, -1]]), np.empty(4)
    module.deviation_mean(deltas, False, out)
    assert out.tolist() == [2.5, 2, 0, 0]
    module.deviation_mean(deltas, True, out)
    assert out.tolist() == [pytest.approx(1.5), 0, 0, 0]
