"""Caption accuracy: of the judge on rendered scenes, and of a toy by the judge."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch
from torch import Tensor

from sdtm_fx.errors import SdtmFxError
from sdtm_fx.toy.judge import ATTRIBUTES, Judge
from sdtm_fx.toy.judge_data import draw, unseen
from sdtm_fx.toy.scenes import Scene


@dataclasses.dataclass(frozen=True)
class Grades:
    """Which attributes of N images are as their captions say.

    Attributes:
        right: [N, 4] bool, columns in the order of `judge.ATTRIBUTES`.
    """

    right: Tensor

    @property
    def count(self) -> int:
        """N."""
        return len(self.right)

    def hits(self) -> dict[str, int]:
        """How many images are right, per attribute, then in all of them at once (`all`)."""
        per_attribute = self.right.sum(0).tolist()
        return {**dict(zip(ATTRIBUTES, per_attribute, strict=True)), "all": int(self.right.all(1).sum())}

    def share(self, name: str) -> float:
        """Share of the images that are right in an attribute, or in `all`.

        Args:
            name: One of `judge.ATTRIBUTES`, or `all`.
        """
        return self.hits()[name] / self.count


@dataclasses.dataclass(frozen=True)
class Sampled:
    """What a toy drew for captions.

    Attributes:
        scenes: B scenes that the captions describe; training draws none of them.
        images: [B, 3, H, W] float32 in [0, 1].
    """

    scenes: tuple[Scene, ...]
    images: Tensor


def grade_scenes(judge: Judge, count: int, height: int, width: int, *, batch: int = 64) -> Grades:
    """Grade rendered scenes that training never drew.

    Args:
        judge: In evaluation mode.
        count: Scenes, at least 1.
        height: Pixels.
        width: Pixels.
        batch: Scenes at a time.

    Raises:
        SdtmFxError: If there are no scenes, or the judge does not read the size.
    """
    _check_count(count)
    scenes = unseen(count)
    parts = (scenes[start : start + batch] for start in range(0, count, batch))
    rows = [judge.grade(draw(part, height, width), [scene.caption for scene in part]) for part in parts]
    return Grades(torch.cat(rows))


def sample(
    pipeline: Any,
    count: int,
    *,
    height: int,
    width: int,
    steps: int,
    seed: int = 0,
    batch: int = 16,
    on_images: Callable[[int], None] = lambda images: None,
) -> Iterator[Sampled]:
    """Let a toy draw the captions of scenes that training never drew, batch by batch.

    Every image has a generator of its own, so an image does not depend on the size of the batch.

    Args:
        pipeline: A toy, with its own guidance.
        count: Images in all, at least 1.
        height: Pixels.
        width: Pixels.
        steps: Denoising steps.
        seed: Of the noise: image number n starts from seed + n.
        batch: Images at a time.
        on_images: Told how many images were drawn, after each batch.

    Raises:
        SdtmFxError: If there are no images to draw, or the toy does not accept an argument.
    """
    _check_count(count)
    scenes = unseen(count)
    for start in range(0, count, batch):
        part = scenes[start : start + batch]
        generators = [torch.Generator().manual_seed(seed + start + place) for place in range(len(part))]
        images = pipeline(
            [scene.caption for scene in part],
            height=height,
            width=width,
            num_inference_steps=steps,
            generator=generators,
            output_type="pt",
        ).images
        on_images(len(part))
        yield Sampled(tuple(part), images.float().cpu())


def grade_samples(judge: Judge, samples: Sequence[Sampled]) -> Grades:
    """Grade what a toy drew.

    Args:
        judge: In evaluation mode.
        samples: From `sample`, at least one.

    Raises:
        SdtmFxError: If the judge does not read the size.
    """
    return Grades(
        torch.cat([judge.grade(part.images, [scene.caption for scene in part.scenes]) for part in samples])
    )


def _check_count(count: int) -> None:
    if count < 1:
        raise SdtmFxError(f"judge: {count} images cannot be graded; give at least 1")
