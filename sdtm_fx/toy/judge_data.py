"""Scenes for the judge: training batches as a pure function of (seed, step), and scenes that training never sees."""

from __future__ import annotations

import dataclasses
import random
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from sdtm_fx.errors import SdtmFxError
from sdtm_fx.toy.judge import WORDS
from sdtm_fx.toy.scenes import Scene, render, sample_scene

SIZES: tuple[tuple[int, int], ...] = (
    *((64, 64),) * 6,
    *((48, 48), (48, 64), (64, 48), (80, 80), (96, 96), (96, 64), (40, 56), (56, 40), (40, 40)),
    *((32, 32),) * 2,
    *((32, 48), (48, 32), (36, 44), (32, 64), (64, 32), (96, 32), (32, 96)),
)
"""Heights and widths of training batches, in pixels; one is drawn per batch."""

_SEED_BITS = 48


@dataclasses.dataclass(frozen=True)
class JudgeBatch:
    """One training batch.

    Attributes:
        images: [B, 3, H, W] float32 in [0, 1], slightly disturbed.
        targets: [B] int64 per attribute of `judge.WORDS`: the place of the right word.
    """

    images: Tensor
    targets: dict[str, Tensor]


def judge_batch(seed: int, step: int, *, size: int = 64) -> JudgeBatch:
    """Draw the batch of a step.

    Args:
        seed: Seed of the run.
        step: Training step, from 0.
        size: B, images per batch.

    Raises:
        SdtmFxError: If seed or step is negative.
    """
    if seed < 0 or step < 0:
        raise SdtmFxError(f"judge: seed and step must not be negative, found seed {seed}, step {step}")
    rng = random.Random(f"sdtm_fx.toy.judge:{seed}:{step}")
    height, width = rng.choice(SIZES)
    drawn = [sample_scene(rng.getrandbits(_SEED_BITS)) for _ in range(size)]
    generator = torch.Generator().manual_seed(rng.getrandbits(_SEED_BITS))
    return JudgeBatch(disturb(draw(drawn, height, width), generator), targets(drawn))


def unseen(count: int) -> list[Scene]:
    """Scenes that no training run draws: their seeds lie above those of training.

    Args:
        count: How many.
    """
    return [sample_scene((1 << _SEED_BITS) + number) for number in range(count)]


def draw(drawn: Sequence[Scene], height: int, width: int) -> Tensor:
    """Render scenes as the judge reads them.

    Args:
        drawn: B scenes.
        height: Pixels.
        width: Pixels.

    Returns:
        [B, 3, height, width] float32 in [0, 1].
    """
    return torch.stack([(render(scene, height, width) + 1) / 2 for scene in drawn])


def targets(drawn: Sequence[Scene]) -> dict[str, Tensor]:
    """The place of the right word, per attribute of `judge.WORDS`.

    Args:
        drawn: B scenes.
    """
    return {
        name: torch.tensor([known.index(getattr(scene, name)) for scene in drawn])
        for name, known in WORDS.items()
    }


def disturb(images: Tensor, generator: torch.Generator) -> Tensor:
    """Blur, recolour and add noise, each to about half of the images, and no more than a sampler errs.

    A judge that saw only perfect renderings would be unsettled by soft edges and slightly wrong colours.

    Args:
        images: [B, 3, H, W] in [0, 1].
        generator: Decides all of it.

    Returns:
        Like `images`, in [0, 1].
    """
    count = len(images)

    def chosen(low: float, high: float, rest: float) -> Tensor:
        """[B, 1, 1, 1]: uniform from `low` to `high` for half of the images, `rest` for the others."""
        values = low + (high - low) * torch.rand(count, generator=generator)
        half = torch.rand(count, generator=generator) < 0.5
        return torch.where(half, values, rest)[:, None, None, None]

    blurred = nn.functional.avg_pool2d(nn.functional.pad(images, (1, 1, 1, 1), mode="replicate"), 3, stride=1)
    images = torch.lerp(images, blurred, chosen(0.0, 0.9, 0.0))
    images = 0.5 + (images - 0.5) * chosen(0.8, 1.1, 1.0) + chosen(-0.05, 0.05, 0.0)
    # A tint per channel: what guidance does to colours.
    tint = torch.rand(count, 3, 1, 1, generator=generator) * 0.1 - 0.05
    images = images + tint * chosen(0.0, 1.0, 0.0)
    images = images + torch.randn(images.shape, generator=generator) * chosen(0.0, 0.05, 0.0)
    return images.clamp(0, 1)
