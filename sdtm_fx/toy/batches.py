"""Training batches of the toy: a pure function of (seed, step), so that a resumed run sees the same data."""

from __future__ import annotations

import dataclasses
import random

import torch
from torch import Tensor

from sdtm_fx.errors import SdtmFxError
from sdtm_fx.toy.scenes import Scene, render, sample_scene

CAPTION_DROPOUT = 0.1
"""Fraction of captions that become the empty one, for classifier-free guidance."""

SHIFT = 3.0
"""Shift of the training times at 32 x 32 px: the toy decides colours and places at high noise, shapes below it."""

UNIFORM_TIMES = 0.25
"""Fraction of the times that are uniform."""

SHORT_CAPTIONS = 0.15
"""Fraction of captions that leave out some of what they could say."""

_LOW = ((32, 32),) * 5 + ((24, 40), (40, 24), (28, 36), (36, 28), (24, 24))
_HIGH = ((64, 64),) * 6 + ((48, 64), (64, 48), (48, 48), (32, 32))


@dataclasses.dataclass(frozen=True)
class Batch:
    """One training batch.

    Attributes:
        images: [B, 3, H, W] float32 in [-1, 1].
        captions: B captions, some of them empty.
        noise: Like `images`, standard normal.
        sigmas: [B] float32 in (0, 1), the share of noise.
    """

    images: Tensor
    captions: list[str]
    noise: Tensor
    sigmas: Tensor


def make_batch(
    seed: int, step: int, *, high: bool, pixels: int = 32 * 32 * 32, shift: float = SHIFT
) -> Batch:
    """Draw the batch of a step.

    Args:
        seed: Seed of the run.
        step: Training step, from 0.
        high: Draw from the resolutions around 64 x 64 instead of those around 32 x 32.
        pixels: Pixels per batch; the number of images follows from the resolution.
        shift: Of the times at 32 x 32 px; it grows with the side.

    Raises:
        SdtmFxError: If seed or step is negative.
    """
    if seed < 0 or step < 0:
        raise SdtmFxError(f"make_batch: seed and step must not be negative, found seed {seed}, step {step}")
    rng = random.Random(f"sdtm_fx.toy.batch:{seed}:{step}")
    height, width = rng.choice(_HIGH if high else _LOW)
    count = max(1, min(48, pixels // (height * width)))
    drawn = [sample_scene(rng.getrandbits(48)) for _ in range(count)]
    generator = torch.Generator().manual_seed(rng.getrandbits(48))
    images = torch.stack([render(scene, height, width) for scene in drawn])
    return Batch(
        images=images,
        captions=[_caption(scene, rng) for scene in drawn],
        noise=torch.randn(images.shape, generator=generator),
        sigmas=_draw_sigmas(count, shift * (height * width / 1024) ** 0.5, generator),
    )


def _draw_sigmas(count: int, shift: float, generator: torch.Generator) -> Tensor:
    # Logit-normal times (Esser et al. 2024, section 3.1), nearer to noise at larger grids (section 5.3.2);
    # a share of uniform ones, or the last steps, where fine detail is drawn, would hardly be trained.
    times = torch.sigmoid(0.2 + 1.2 * torch.randn(count, generator=generator))
    shifted = shift * times / (1 + (shift - 1) * times)
    uniform = torch.rand(count, generator=generator)
    return torch.where(torch.rand(count, generator=generator) < UNIFORM_TIMES, uniform, shifted)


def _caption(scene: Scene, rng: random.Random) -> str:
    draw = rng.random()
    if draw < CAPTION_DROPOUT:
        return ""
    return shorten(scene, rng) if draw < CAPTION_DROPOUT + SHORT_CAPTIONS else scene.caption


def shorten(scene: Scene, rng: random.Random) -> str:
    """Describe a scene, leaving out size, texture, position and background at random.

    Args:
        scene: What to describe; shape and colour are always named.
        rng: Decides what is left out.
    """
    ground = scene.caption.split(" on ", 1)[1]
    words = ["a"]
    words += [word for word in (scene.size, scene.texture) if rng.random() < 0.5]
    words += [scene.colour, scene.shape]
    if rng.random() < 0.5:
        words.append(f"at the {scene.position}")
    if rng.random() < 0.5:
        words.append(f"on {ground}")
    return " ".join(words)
