"""A contact sheet: the first images of every row, below the dense ones."""

from __future__ import annotations

import math
import textwrap

import torch
from PIL import Image, ImageDraw, ImageFont
from torch import Tensor

from sdtm_fx.evaluate.result import Evaluation

_SHORTER, _GAP, _LABEL, _LINE = 128, 6, 170, 14


def draw_sheet(evaluation: Evaluation) -> Image.Image:
    """A picture with one row of images for each row of the evaluation, and the prompts above them."""
    height, width = evaluation.sampling.height, evaluation.sampling.width
    scale = max(1, round(_SHORTER / min(height, width)))
    height, width = (height * scale, width * scale) if min(height, width) <= _SHORTER else _fit(height, width)
    shown = len(evaluation.rows[0].images)
    prompts = [textwrap.wrap(prompt, max(8, width // 6)) for prompt in evaluation.sampling.prompts[:shown]]
    top = _LINE * max(map(len, prompts)) + 2 * _GAP
    size = (_LABEL + shown * (width + _GAP), top + len(evaluation.rows) * (height + _GAP))
    sheet = Image.new("RGB", size, "white")
    pen, font = ImageDraw.Draw(sheet), ImageFont.load_default()
    for column, lines in enumerate(prompts):
        pen.text((_LABEL + column * (width + _GAP), _GAP), "\n".join(lines), fill="black", font=font)
    for place, result in enumerate(evaluation.rows):
        y = top + place * (height + _GAP)
        mean = evaluation.estimate(result.row.label, "psnr").mean
        quality = "identical to dense" if math.isinf(mean) else f"{mean:.1f} dB to dense"
        label = "\n".join(textwrap.wrap(result.row.label, 26))
        pen.text((_GAP, y), f"{label}\n{result.total:.2f} of the MACs\n{quality}", fill="black", font=font)
        for column, image in enumerate(result.images):
            picture = _picture(image).resize((width, height), Image.Resampling.NEAREST)
            sheet.paste(picture, (_LABEL + column * (width + _GAP), y))
    return sheet


def _fit(height: int, width: int) -> tuple[int, int]:
    """The size with the shorter side at its limit."""
    shrink = _SHORTER / min(height, width)
    return round(height * shrink), round(width * shrink)


def _picture(image: Tensor) -> Image.Image:
    pixels = (image.clamp(0, 1) * 255).round().to(torch.uint8).permute(1, 2, 0).contiguous()
    return Image.fromarray(pixels.numpy())
