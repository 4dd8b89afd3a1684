from __future__ import annotations

import math

import numpy as np
import pytest

from consilience.bench import paired_bootstrap
from consilience.bench.bootstrap import resampled_means
from consilience.errors import DataError


def test_difference_is_exact_and_the_interval_is_near_theory() -> None:
    generator = np.random.default_rng(3)
    b = generator.uniform(size=400)
    a = b + generator.normal(0.03, 0.1, size=400)
    found = paired_bootstrap(a, b)
    assert found.difference == pytest.approx((a - b).mean())
    error = (a - b).std() / math.sqrt(400)
    assert found.low == pytest.approx((a - b).mean() - 1.96 * error, abs=0.1 * error)
    assert found.high == pytest.approx((a - b).mean() + 1.96 * error, abs=0.1 * error)
    assert (found.n, found.excludes_zero) == (400, True)


def test_coverage_of_the_true_difference() -> None:
    hits = 0
    for trial in range(300):
        values = np.random.default_rng(trial).normal(0.2, 1.0, size=60)
        found = paired_bootstrap(values, np.zeros(60), resamples=500, seed=trial)
        hits += found.low <= 0.2 <= found.high
    assert 0.90 <= hits / 300 <= 0.98


def test_pairing_matters() -> None:
    spread = np.linspace(0, 1, 50)
    found = paired_bootstrap(spread + 0.01, spread)
    assert found.low == pytest.approx(0.01)
    assert found.high == pytest.approx(0.01)


def test_strata_weigh_alike_and_are_resampled_apart() -> None:
    a = [1.0] * 90 + [0.0] * 10
    found = paired_bootstrap(a, [0.0] * 100, strata=["big"] * 90 + ["small"] * 10)
    assert (found.difference, found.low, found.high) == (0.5, 0.5, 0.5)
    assert paired_bootstrap(a, [0.0] * 100).low < 0.9


def test_same_seed_same_interval_and_blocks_do_not_matter() -> None:
    values = np.random.default_rng(0).normal(size=37)
    zeros = np.zeros(37)
    assert paired_bootstrap(values, zeros, seed=4) == paired_bootstrap(values, zeros, seed=4)
    assert paired_bootstrap(values, zeros, seed=4) != paired_bootstrap(values, zeros, seed=5)
    many = np.random.default_rng(0).normal(size=(3000, 1))
    long = resampled_means(many, name="x", resamples=800)
    assert np.allclose(long[:400], resampled_means(many, name="x", resamples=400), rtol=0, atol=1e-14)


def test_all_columns_share_the_draws() -> None:
    values = np.random.default_rng(0).normal(size=(20, 2))
    both = resampled_means(values, name="d", resamples=50)
    assert np.allclose(both[:, 1], resampled_means(values[:, 1:], name="d", resamples=50)[:, 0])


def test_wrong_inputs() -> None:
    with pytest.raises(DataError, match="one score per query for both models"):
        paired_bootstrap([1.0], [1.0, 2.0])
    with pytest.raises(DataError, match="at least one query"):
        paired_bootstrap([], [])
    with pytest.raises(DataError, match="NaN or infinite"):
        paired_bootstrap([1.0, float("nan")], [0.0, 0.0])
    with pytest.raises(DataError, match="0 resamples"):
        paired_bootstrap([1.0], [0.0], resamples=0)
    one = paired_bootstrap([1.0], [0.5])
    assert (one.difference, one.n, one.excludes_zero) == (0.5, 1, False)
    assert math.isnan(one.low)
