"""The Fréchet distance."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from sdtm_fx.errors import SdtmFxError
from sdtm_fx.evaluate.frechet import frechet_distance, frechet_estimate


def normal(count: int, width: int, seed: int = 0) -> Tensor:
    return torch.randn(count, width, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def test_a_shift_costs_its_square_and_a_scale_the_difference_of_the_deviations() -> None:
    x = normal(300, 5)
    assert frechet_distance(x, x) == pytest.approx(0, abs=1e-9)
    assert frechet_distance(x, x + 2) == pytest.approx(4 * 5)
    # Covariances S and 9 S commute: tr(S + 9 S - 6 S) = 4 tr S.
    centred = x - x.mean(0)
    assert frechet_distance(centred, 3 * centred) == pytest.approx(4 * float(torch.cov(x.T).trace()))


def test_it_is_the_textbook_formula_where_covariances_do_not_commute() -> None:
    x, y = normal(200, 4, 1) @ normal(4, 4, 2), normal(150, 4, 3) @ normal(4, 4, 4)
    product = torch.linalg.eigvals(torch.cov(x.T) @ torch.cov(y.T)).real.clamp(min=0).sqrt().sum()
    spread = torch.cov(x.T).trace() + torch.cov(y.T).trace() - 2 * product
    expected = float((x.mean(0) - y.mean(0)).square().sum() + spread)
    assert frechet_distance(x, y) == pytest.approx(expected)
    assert frechet_distance(y, x) == pytest.approx(expected)


def test_the_bias_falls_with_the_number_of_images() -> None:
    few = frechet_distance(normal(40, 8, 5), normal(40, 8, 6))
    many = frechet_distance(normal(2000, 8, 5), normal(2000, 8, 6))
    assert 0 < many < few / 5


def test_one_feature_is_enough() -> None:
    assert frechet_distance(normal(20, 1), normal(20, 1) + 3) == pytest.approx(9)


def test_the_interval_lies_around_the_distance() -> None:
    x, y = normal(100, 4, 7), normal(100, 4, 8) + 0.5
    estimate = frechet_estimate(x, y)
    assert estimate.mean == frechet_distance(x, y)
    assert estimate.low is not None
    assert estimate.high is not None
    assert estimate.low < estimate.mean < estimate.high
    assert frechet_estimate(x, y) == estimate
    same = frechet_estimate(x, x, paired=True)
    assert same.high == pytest.approx(0, abs=1e-9)


@pytest.mark.parametrize(("left", "right"), [(8, 30), (30, 8)])
def test_too_few_images_are_refused(left: int, right: int) -> None:
    with pytest.raises(SdtmFxError, match="8 images are too few for 8 features; at least 9 are needed"):
        frechet_distance(normal(left, 8), normal(right, 8))
