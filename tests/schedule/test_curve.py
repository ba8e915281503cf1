"""Ratio curves against their formulas."""

from __future__ import annotations

import math

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sdtm_fx.curve import ratio_curve
from sdtm_fx.errors import ScheduleError
from sdtm_fx.recipe.ratio import ConstantRatio, CurveRatio, ListRatio, ThresholdRatio

fractions = st.floats(0, 0.95)


@settings(max_examples=30, deadline=None)
@given(fractions, fractions, st.integers(2, 60))
def test_cosine_is_the_released_quarter_wave(start: float, end: float, steps: int) -> None:
    found = ratio_curve(CurveRatio(curve="cosine", start=start, end=end), steps)
    expected = [end + (start - end) * math.cos(math.pi * t / (2 * (steps - 1))) for t in range(steps)]
    assert found == pytest.approx(expected, abs=1e-12)


def test_cosine_in_the_terms_of_the_released_code() -> None:
    # ratio .3, deviation .2: (rho - delta) + 2 delta cos(pi t / (2 (T - 1)))
    found = ratio_curve(CurveRatio(curve="cosine", start=0.5, end=0.1), 50)
    assert found[0] == pytest.approx(0.5)
    assert found[20] == pytest.approx(0.1 + 0.4 * math.cos(math.pi * 20 / 98))
    assert found[-1] == pytest.approx(0.1)


def test_linear() -> None:
    found = ratio_curve(CurveRatio(curve="linear", start=0.6, end=0.2), 5)
    assert found == pytest.approx([0.6, 0.5, 0.4, 0.3, 0.2])


def test_constant() -> None:
    assert ratio_curve(ConstantRatio(curve="constant", start=0.25), 3) == (0.25,) * 3


def test_list_is_spread_evenly() -> None:
    values = ListRatio(curve="list", values=(0.2, 0.6, 0.4))
    assert ratio_curve(values, 3) == (0.2, 0.6, 0.4)
    assert ratio_curve(values, 5) == pytest.approx([0.2, 0.4, 0.6, 0.5, 0.4])
    assert ratio_curve(values, 2) == pytest.approx([0.2, 0.4])
    assert ratio_curve(ListRatio(curve="list", values=(0.3,)), 4) == pytest.approx([0.3] * 4)


@pytest.mark.parametrize("curve", ["cosine", "linear"])
def test_one_step_takes_the_start(curve: str) -> None:
    assert ratio_curve(CurveRatio(curve=curve, start=0.6, end=0.2), 1) == pytest.approx([0.6])  # type: ignore[arg-type]


def test_errors() -> None:
    with pytest.raises(ScheduleError, match="ratio curve: found 0 steps; accepted: at least 1"):
        ratio_curve(ConstantRatio(curve="constant", start=0.25), 0)
    with pytest.raises(ScheduleError, match=r"a threshold \(0\.9\) has no curve"):
        ratio_curve(ThresholdRatio(threshold=0.9, start=0.5), 4)
