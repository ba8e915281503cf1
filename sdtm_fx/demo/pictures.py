"""Tensors as PNG files inside the page."""

from __future__ import annotations

import base64
import io

import torch
from matplotlib import colormaps
from PIL import Image
from torch import Tensor

from sdtm_fx.demo.compare import Film

_GAIN = 4.0
"""How much a difference of images is amplified."""

_SHADES = "magma"


def data_uri(image: Tensor) -> str:
    """An image [3, H, W] in [0, 1] as a PNG in a ``data:`` address, pixel for pixel."""
    pixels = (image.clamp(0, 1) * 255).round().to(torch.uint8).permute(1, 2, 0).contiguous().numpy()
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, format="PNG", optimize=True)
    return f"data:image/png;base64,{base64.b64encode(file.getvalue()).decode()}"


def difference(image: Tensor, dense: Tensor) -> Tensor:
    """[3, H, W]: grey where two images agree, four times their difference where they do not."""
    return (0.5 + _GAIN * (image - dense) / 2).clamp(0, 1)


def merged_share(film: Film, row: int = -1) -> Tensor:
    """[h, w] in [0, 1]: in what share of all site evaluations of a run each token was merged.

    Args:
        film: Its record tells.
        row: Which sample of the batch.
    """
    counts = torch.zeros(film.record.sites[0].grid, dtype=torch.float64)
    for site in film.record:
        mask = site.merged_mask
        if mask is not None:
            counts += mask[row].reshape(site.grid)
    return counts / len(film.record)


def shaded(share: Tensor) -> Tensor:
    """[h, w] in [0, 1] as colours, [3, h, w]: dark is 0."""
    colours = colormaps[_SHADES](share.numpy())[..., :3]
    return torch.from_numpy(colours).permute(2, 0, 1).float()


def shades() -> str:
    """The scale of `shaded`, as a CSS gradient from left to right."""
    stops = [colormaps[_SHADES](i / 8)[:3] for i in range(9)]
    listed = ", ".join("#" + "".join(f"{round(c * 255):02x}" for c in stop) for stop in stops)
    return f"linear-gradient(to right, {listed})"
