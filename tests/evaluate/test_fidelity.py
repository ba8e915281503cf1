"""PSNR, SSIM and the error of trajectories."""

from __future__ import annotations

import math

import pytest
import torch

from sdtm_fx.errors import SdtmFxError
from sdtm_fx.evaluate.fidelity import psnr, relative_error, ssim


def test_psnr_is_that_of_each_image() -> None:
    images = torch.rand(3, 3, 12, 14, generator=torch.Generator().manual_seed(0))
    moved = images.clone()
    moved[1] += 0.1
    moved[2] += 0.01
    values = psnr(moved, images)
    assert values[0] == math.inf
    assert values[1] == pytest.approx(20, abs=1e-4)
    assert values[2] == pytest.approx(40, abs=1e-3)


def test_psnr_is_relative_to_the_peak() -> None:
    ramp = torch.linspace(-2, 2, 48).reshape(1, 3, 4, 4)
    assert psnr(ramp + 0.4, ramp, peak=4.0) == pytest.approx((20.0,), abs=1e-4)


def test_ssim_is_one_for_identical_images_and_does_not_depend_on_the_batch() -> None:
    generator = torch.Generator().manual_seed(0)
    images, noise = (
        torch.rand(4, 3, 16, 20, generator=generator),
        torch.randn(4, 3, 16, 20, generator=generator),
    )
    values = ssim((images + 0.1 * noise).clamp(0, 1), images)
    assert ssim(images, images) == (1.0,) * 4
    assert all(0 < value < 1 for value in values)
    assert ssim((images + 0.1 * noise).clamp(0, 1)[2:3], images[2:3]) == values[2:3]


def test_images_smaller_than_the_window_are_refused() -> None:
    small = torch.zeros(1, 3, 10, 64)
    with pytest.raises(SdtmFxError, match="ssim: images of 10 x 64 px are smaller than its window of 11 px"):
        ssim(small, small)


def test_relative_error_is_per_image_and_step() -> None:
    dense = torch.ones(2, 3, 4, 5, dtype=torch.bfloat16)
    latents = dense.clone()
    latents[1, 2] = 1.5
    expected = torch.zeros(3, 2, dtype=torch.float64)
    expected[2, 1] = 0.5
    assert torch.equal(relative_error(latents, dense), expected)
