"""What the judge says about images: grades, features, and Fréchet distances between them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from sdtm_fx.errors import SdtmFxError
from sdtm_fx.evaluate.frechet import frechet_distance, frechet_estimate, least_images
from sdtm_fx.evaluate.interval import Estimate
from sdtm_fx.evaluate.row import Judge

_BATCH = 64


@dataclass(frozen=True)
class Yardstick:
    """What features are measured against.

    Attributes:
        real: [M, F] features of real images; None where there are none.
        dense: [N, F] features of the dense images.
        missing: Why no Fréchet distance can be computed; None where it can.
    """

    real: Tensor | None
    dense: Tensor
    missing: str | None

    def to_real(self, features: Tensor) -> Estimate | None:
        """Fréchet distance to the real images, None where it cannot be computed."""
        if self.missing is not None or self.real is None:
            return None
        return frechet_estimate(features, self.real[: len(features)])

    def to_dense(self, features: Tensor) -> Estimate | None:
        """Fréchet distance to the dense images of the same seeds, None where it cannot be computed."""
        return None if self.missing is not None else frechet_estimate(features, self.dense, paired=True)

    def floor(self) -> float | None:
        """Distance between two disjoint sets of real images as large as the dense one, None without them."""
        count = len(self.dense)
        if self.missing is not None or self.real is None or len(self.real) < 2 * count:
            return None
        return frechet_distance(self.real[:count], self.real[count : 2 * count])


def yardstick(judge: Judge, dense: Tensor, real: Tensor | None) -> Yardstick:
    """Make the yardstick of an evaluation.

    Args:
        judge: Sees the images.
        dense: [N, 3, H, W] dense images.
        real: [M, 3, H, W] real images, at least N of them, 2 N for the floor; None leaves them out.

    Raises:
        SdtmFxError: There are fewer real images than dense ones.
    """
    if real is not None and len(real) < len(dense):
        raise SdtmFxError(
            f"evaluate: {len(real)} real images for {len(dense)} judged ones; Fréchet distances compare at equal "
            "numbers only"
        )
    features = judge_features(judge, dense)
    missing = too_few(len(dense), features.shape[1])
    return Yardstick(None if real is None else judge_features(judge, real), features, missing)


def too_few(images: int, features: int) -> str | None:
    """Why so many images have no Fréchet distance over so many features; None where they have one."""
    least = least_images(features)
    return (
        None
        if images >= least
        else f"{images} judged images are too few for {features} features, {least} are needed"
    )


def judge_features(judge: Judge, images: Tensor) -> Tensor:
    """Features of any number of images, [N, F] float64 on the CPU."""
    with torch.no_grad():
        return torch.cat([judge.features(part).double().cpu() for part in images.split(_BATCH)])


def judge_grades(judge: Judge, images: Tensor, captions: Sequence[str]) -> tuple[tuple[bool, ...], ...]:
    """Grades of any number of images, per image and attribute."""
    grades: list[tuple[bool, ...]] = []
    with torch.no_grad():
        for start in range(0, len(images), _BATCH):
            part = judge.grade(images[start : start + _BATCH], captions[start : start + _BATCH])
            grades += [tuple(bool(right) for right in image) for image in part.tolist()]
    return tuple(grades)
