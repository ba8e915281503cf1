"""A contact sheet: what a toy drew, beside the scenes that its captions describe."""

from __future__ import annotations

import textwrap
from collections.abc import Sequence

import torch
from PIL import Image, ImageDraw, ImageFont
from torch import Tensor

from sdtm_fx.errors import SdtmFxError

_CELL, _GAP, _LINE = 128, 6, 13


def draw_contact_sheet(
    samples: Tensor, scenes: Tensor, captions: Sequence[str], *, columns: int = 4
) -> Image.Image:
    """Draw pairs, the sample at the left and the rendered scene at the right, with the caption below.

    Args:
        samples: [N, 3, H, W] in [0, 1].
        scenes: Like `samples`.
        captions: N captions.
        columns: Pairs in a row.

    Raises:
        SdtmFxError: If the three do not fit together, or there is nothing to draw.
    """
    if samples.shape != scenes.shape or len(captions) != len(samples) or not captions:
        raise SdtmFxError(
            f"sheet: {list(samples.shape)} samples, {list(scenes.shape)} scenes and {len(captions)} captions do "
            "not make pairs; give as many of each, at least one"
        )
    height, width = samples.shape[2:]
    scale = _CELL / max(height, width)
    cell_width, cell_height = round(width * scale), round(height * scale)
    lines = [textwrap.wrap(caption, max(10, 2 * cell_width // 6)) for caption in captions]
    pair_width = 2 * cell_width + 3 * _GAP
    pair_height = cell_height + 2 * _GAP + _LINE * max(map(len, lines))
    columns = min(columns, len(captions))
    rows = -(-len(captions) // columns)
    sheet = Image.new("RGB", (columns * pair_width, rows * pair_height + _GAP), "white")
    pen, font = ImageDraw.Draw(sheet), ImageFont.load_default(10)
    for number, words in enumerate(lines):
        x, y = number % columns * pair_width + _GAP, number // columns * pair_height + _GAP
        for place, image in enumerate((samples[number], scenes[number])):
            picture = _picture(image).resize((cell_width, cell_height), Image.Resampling.NEAREST)
            sheet.paste(picture, (x + place * (cell_width + 1), y))
        pen.text((x, y + cell_height + 1), "\n".join(words), fill="black", font=font, spacing=1)
    return sheet


def _picture(image: Tensor) -> Image.Image:
    pixels = (image.clamp(0, 1) * 255).round().to(torch.uint8).permute(1, 2, 0).contiguous().numpy()
    return Image.fromarray(pixels)
