"""Draws images side by side, with captions."""

from __future__ import annotations

import textwrap
from collections.abc import Sequence

import torch
from PIL import Image, ImageDraw, ImageFont
from torch import Tensor

from sdtm_fx.demo.compare import Comparison

_CELL, _GAP, _LABEL, _LINE = 192, 8, 150, 15


def draw_sheet(comparison: Comparison) -> Image.Image:
    """A picture with one column per case and one row per pipeline, the dense one first.

    Args:
        comparison: Its images have any number of channels; the first three are shown.
    """
    captions = [textwrap.wrap(caption, 28) for caption in comparison.task.captions]
    rows: list[tuple[str, Sequence[Tensor]]] = [("dense", comparison.images)]
    for outcome in comparison.outcomes:
        e = outcome.explanation
        share = e.mean.total / e.dense.total
        rows.append(
            (
                f"{outcome.recipe}\n{share:.2f} of the MACs\n{outcome.mean_psnr:.1f} dB to dense",
                outcome.images,
            )
        )
    top = _LINE * max(map(len, captions)) + 2 * _GAP
    width = _LABEL + len(captions) * (_CELL + _GAP)
    sheet = Image.new("RGB", (width, top + len(rows) * (_CELL + _GAP)), "white")
    pen, font = ImageDraw.Draw(sheet), ImageFont.load_default()
    for column, lines in enumerate(captions):
        pen.text((_LABEL + column * (_CELL + _GAP), _GAP), "\n".join(lines), fill="black", font=font)
    for row, (label, images) in enumerate(rows):
        y = top + row * (_CELL + _GAP)
        pen.text((_GAP, y), label, fill="black", font=font)
        for column, image in enumerate(images):
            reference = comparison.images[column] if comparison.task.peak is None else None
            sheet.paste(_picture(image, reference), (_LABEL + column * (_CELL + _GAP), y))
    return sheet


def _picture(image: Tensor, reference: Tensor | None) -> Image.Image:
    """An RGB cell; where a reference is given, its range is mapped to [0, 1]."""
    colours = image[:3]
    if reference is not None:
        low, high = reference[:3].min(), reference[:3].max()
        colours = (colours - low) / (high - low)
    pixels = (colours.clamp(0, 1) * 255).round().to(torch.uint8).permute(1, 2, 0).contiguous().numpy()
    return Image.fromarray(pixels).resize((_CELL, _CELL), Image.Resampling.NEAREST)
