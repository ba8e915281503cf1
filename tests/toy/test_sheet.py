from __future__ import annotations

import pytest
import torch

from sdtm_fx.errors import SdtmFxError
from sdtm_fx.toy.loss_curve import loss_curve
from sdtm_fx.toy.sheet import draw_contact_sheet


def test_a_sheet_shows_each_sample_at_the_left_of_its_scene() -> None:
    red = torch.tensor([1.0, 0.0, 0.0])[:, None, None].expand(3, 32, 32)
    samples, scenes = torch.stack([red, red * 0.5]), torch.stack([red.flip(0), red.flip(0)])
    sheet = draw_contact_sheet(samples, scenes, ["a red square", "a dark red square"], columns=1)
    assert sheet.getpixel((10, 10)) == (255, 0, 0)
    assert sheet.getpixel((200, 10)) == (0, 0, 255)
    assert sheet.getpixel((10, sheet.height // 2 + 10)) == (128, 0, 0)
    assert sheet.getpixel((sheet.width - 2, 10)) == (255, 255, 255)
    text = sheet.crop((0, 136, sheet.width, sheet.height // 2)).convert("L")
    assert text.getextrema()[0] < 100


def test_what_makes_no_pairs() -> None:
    images = torch.zeros(2, 3, 8, 8)
    for samples, captions in ((images, ["one"]), (images[:1], ["one", "two"]), (images[:0], [])):
        with pytest.raises(SdtmFxError, match="do not make pairs; give as many of each, at least one"):
            draw_contact_sheet(samples, images, captions)


def test_a_loss_curve_shows_every_step_and_a_running_mean() -> None:
    figure = loss_curve([4.0, 2.0, 1.0, 1.0], "a title", window=2)
    axes = figure.axes[0]
    assert axes.get_title() == "a title"
    assert axes.get_yscale() == "log"
    each, mean = (line.get_ydata() for line in axes.lines)
    assert list(each) == [4.0, 2.0, 1.0, 1.0]
    assert list(mean) == [4.0, 3.0, 1.5, 1.0]
    with pytest.raises(SdtmFxError, match="there are no losses yet"):
        loss_curve([], "nothing")
