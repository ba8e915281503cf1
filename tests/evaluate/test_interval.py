"""Means and their intervals."""

from __future__ import annotations

import math

import numpy as np
import pytest

from sdtm_fx.errors import SdtmFxError
from sdtm_fx.evaluate.interval import Estimate, mean_interval, paired_differences, share_interval


def test_the_interval_of_a_mean_is_that_of_its_standard_error() -> None:
    values = np.random.default_rng(1).normal(20.0, 2.0, 400).tolist()
    estimate = mean_interval(values)
    half = 1.96 * float(np.std(values)) / 20
    assert estimate.mean == pytest.approx(float(np.mean(values)))
    assert estimate.low == pytest.approx(estimate.mean - half, abs=0.03)
    assert estimate.high == pytest.approx(estimate.mean + half, abs=0.03)
    assert mean_interval(values) == estimate


def test_intervals_hold_the_truth_about_as_often_as_they_say() -> None:
    rng = np.random.default_rng(2)
    hits = 0
    for _ in range(100):
        estimate = mean_interval(rng.normal(0.0, 1.0, 32).tolist())
        assert estimate.low is not None
        assert estimate.high is not None
        hits += estimate.low <= 0 <= estimate.high
    assert 86 <= hits <= 99


def test_equal_values_have_no_spread_and_one_value_has_none_that_is_known() -> None:
    assert mean_interval([0.0] * 5) == Estimate(0.0, 0.0, 0.0, 5)
    assert mean_interval([3.0]) == Estimate(3.0, None, None, 1)
    assert not mean_interval([3.0]).excludes_zero
    assert mean_interval([3.0, 3.5, 4.0]).excludes_zero
    assert not mean_interval([-3.0, 0.1, 4.0]).excludes_zero


def test_infinite_values_are_counted_and_left_out_of_the_mean() -> None:
    some = mean_interval([20.0, math.inf, 22.0])
    assert (some.mean, some.count, some.infinite) == (21.0, 3, 1)
    assert mean_interval([math.inf] * 2) == Estimate(math.inf, math.inf, math.inf, 2, 2)


@pytest.mark.parametrize("values", [[], [1.0, math.nan]])
def test_no_values_and_no_numbers_are_refused(values: list[float]) -> None:
    with pytest.raises(SdtmFxError, match="interval: there are no values, or one of them is not a number"):
        mean_interval(values)


def test_infinite_values_of_both_signs_have_no_mean() -> None:
    with pytest.raises(SdtmFxError, match="infinite with both signs; they have no mean"):
        mean_interval([math.inf, -math.inf])


def test_shares_have_wilson_intervals() -> None:
    estimate = share_interval(8, 10)
    assert (estimate.mean, estimate.count) == (0.8, 10)
    # Newcombe 1998, method 3: the score interval without continuity correction.
    assert estimate.low == pytest.approx(0.4902, abs=1e-4)
    assert estimate.high == pytest.approx(0.9433, abs=1e-4)
    assert share_interval(10, 10).high == pytest.approx(1, abs=1e-15)
    assert share_interval(0, 10).low == pytest.approx(0, abs=1e-15)


def test_identical_images_differ_by_zero() -> None:
    assert paired_differences([math.inf, 3.0, math.inf], [math.inf, 1.0, 5.0]) == (0.0, 2.0, math.inf)
