"""Distance of images, and of trajectories, to the dense ones."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torchmetrics.functional.image import peak_signal_noise_ratio, structural_similarity_index_measure

from sdtm_fx.errors import SdtmFxError

SSIM_WINDOW = 11
"""Pixels of the Gaussian window of SSIM (sigma 1.5; Wang et al. 2004); it fits any image that is as large."""


def psnr(images: Tensor, dense: Tensor, *, peak: float = 1.0) -> tuple[float, ...]:
    """Peak signal-to-noise ratio in dB, per image; infinite for identical ones.

    Args:
        images: [B, C, H, W].
        dense: The same shape.
        peak: Largest difference that two values can have.
    """
    values = peak_signal_noise_ratio(
        images.double(), dense.double(), data_range=peak, reduction="none", dim=(1, 2, 3)
    )
    return tuple(values.tolist())


def ssim(images: Tensor, dense: Tensor) -> tuple[float, ...]:
    """Structural similarity, per image; 1 for identical ones.

    Args:
        images: [B, C, H, W] in [0, 1].
        dense: The same shape.

    Raises:
        SdtmFxError: The images are smaller than the window of SSIM.
    """
    if min(images.shape[-2:]) < SSIM_WINDOW:
        raise SdtmFxError(
            f"ssim: images of {images.shape[-2]} x {images.shape[-1]} px are smaller than its window of "
            f"{SSIM_WINDOW} px"
        )
    values: Any = structural_similarity_index_measure(
        images.double(), dense.double(), data_range=1.0, kernel_size=SSIM_WINDOW, sigma=1.5, reduction="none"
    )
    return tuple(values.reshape(-1).tolist())


def relative_error(latents: Tensor, dense: Tensor) -> Tensor:
    """L2 norm of the difference over that of the dense latent, per image and step.

    Args:
        latents: [T, B, ...], after each step.
        dense: The same shape.

    Returns:
        [B, T] float64.
    """
    target = dense.double()
    moved, length = (
        torch.linalg.vector_norm(x.flatten(2), dim=2) for x in (latents.double() - target, target)
    )
    return (moved / length).T.contiguous()
