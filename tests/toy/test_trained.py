"""The weights that the package carries draw what a caption says."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from sdtm_fx.errors import SdtmFxError
from sdtm_fx.toy import ToySD3Pipeline, load_toy, parse_caption, render
from sdtm_fx.toy.load import WEIGHTS
from sdtm_fx.toy.scenes import COLOURS, POSITIONS


@pytest.fixture(scope="module")
def toy() -> ToySD3Pipeline:
    return load_toy("sd3")


CAPTIONS = [
    "a large plain red circle at the centre on a plain blue background",
    "a large plain yellow square at the centre on a plain purple background",
    "a large plain green circle at the upper left on a plain white background",
    "a large plain blue square at the lower right on a plain yellow background",
    "a large plain black circle at the middle left on a plain orange background",
    "a large plain white square at the middle right on a plain red background",
    "a large plain cyan circle at the upper right on a plain black background",
    "a large plain orange square at the lower left on a plain green background",
]


def nearest_colour(pixels: Tensor) -> str:
    """Name of the colour closest to the mean of [3, ...] pixels in [-1, 1]."""
    mean = pixels.flatten(1).mean(1) / 2 + 0.5
    return min(COLOURS, key=lambda name: float((torch.tensor(COLOURS[name]) - mean).norm()))


def score(toy: ToySD3Pipeline, captions: list[str], height: int, width: int, steps: int) -> tuple[int, int]:
    """Number of images whose object, and whose background, has the right colour in the right place."""
    generator = torch.Generator().manual_seed(0)
    images = toy(
        captions,
        height=height,
        width=width,
        num_inference_steps=steps,
        guidance_scale=3.0,
        generator=generator,
        output_type="latent",
    ).images
    objects = backgrounds = 0
    for caption, image in zip(captions, images, strict=True):
        scene = parse_caption(caption)
        x, y = (
            int(share * side) for share, side in zip(POSITIONS[scene.position], (width, height), strict=True)
        )
        objects += nearest_colour(image[:, y - 2 : y + 3, x - 2 : x + 3]) == scene.colour
        outside = (render(scene, height, width) - render(scene, height, width)[:, :1, :1]).abs().amax(0) == 0
        backgrounds += nearest_colour(image[:, outside]) == scene.background_colours[0]
    return objects, backgrounds


def test_it_draws_the_right_colours_at_the_right_places(toy: ToySD3Pipeline) -> None:
    objects, backgrounds = score(toy, CAPTIONS, 32, 32, steps=12)
    assert objects >= 7
    assert backgrounds >= 7


def test_it_draws_at_32_by_32_tokens(toy: ToySD3Pipeline) -> None:
    objects, backgrounds = score(toy, CAPTIONS[:3], 64, 64, steps=7)
    assert objects >= 2
    assert backgrounds >= 2


def test_it_draws_at_sizes_that_are_not_square(toy: ToySD3Pipeline) -> None:
    objects, backgrounds = score(toy, CAPTIONS[:4], 24, 40, steps=8)
    assert objects >= 3
    assert backgrounds >= 3


def test_guidance_follows_the_caption_more_than_the_empty_one(toy: ToySD3Pipeline) -> None:
    start = torch.randn(1, 3, 32, 32, generator=torch.Generator().manual_seed(5))
    settings = {
        "height": 32,
        "width": 32,
        "num_inference_steps": 8,
        "latents": start,
        "output_type": "latent",
    }
    with_caption = toy(CAPTIONS[0], **settings).images
    without = toy("", **settings).images
    target = render(parse_caption(CAPTIONS[0]), 32, 32)
    assert (with_caption[0] - target).abs().mean() < 0.5 * (without[0] - target).abs().mean()


def test_equal_seeds_draw_equal_images(toy: ToySD3Pipeline) -> None:
    settings = {"height": 16, "width": 16, "num_inference_steps": 3, "output_type": "pt"}
    images = [
        toy(CAPTIONS[0], generator=torch.Generator().manual_seed(1), **settings).images for _ in range(2)
    ]
    assert torch.equal(images[0], images[1])


def test_the_weights_are_small_half_precision_and_complete() -> None:
    files = [path for path in (WEIGHTS / "sd3").rglob("*") if path.is_file()]
    assert sum(path.stat().st_size for path in files) < 9_000_000
    assert load_toy().transformer.dtype == torch.float32
    half = load_toy("sd3", dtype=torch.bfloat16)
    assert half.transformer.dtype == torch.bfloat16
    assert half.text_encoder.dtype == torch.bfloat16
    assert (WEIGHTS / "MODEL_CARD.md").is_file()


def test_unknown_toys_say_what_is_accepted(monkeypatch: pytest.MonkeyPatch, tmp_path: object) -> None:
    with pytest.raises(SdtmFxError, match=r"no toy 'sd4' \(did you mean 'sd3'\?\); accepted: sd3"):
        load_toy("sd4")
    monkeypatch.setattr("sdtm_fx.toy.load.WEIGHTS", tmp_path)
    with pytest.raises(SdtmFxError, match="the weights of 'sd3' are not installed"):
        load_toy("sd3")
