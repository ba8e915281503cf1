"""Fréchet distance between sets of features (Heusel et al. 2017, eq. 6), in float64.

The distance between two samples of one distribution is not zero: it is biased upwards, by an amount that falls
as the samples grow. So only distances at equal numbers of images compare, and the distance between two disjoint
sets of real images of that size, `Evaluation.frechet_floor`, is what a perfect model would score.
"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from sdtm_fx.errors import SdtmFxError
from sdtm_fx.evaluate.interval import CONFIDENCE, Estimate, resampled

RESAMPLES = 200
"""Of the bootstrap: each takes two eigenvalue problems."""


def least_images(features: int) -> int:
    """Fewest images whose features have a covariance of full rank."""
    return features + 1


def frechet_distance(features: Tensor, others: Tensor) -> float:
    """Squared Fréchet distance between the normal distributions that fit two sets of features.

    Args:
        features: [N, F].
        others: [M, F].

    Raises:
        SdtmFxError: A set has fewer than F + 1 images, so that its covariance is singular.
    """
    for count in (len(features), len(others)):
        if count < least_images(features.shape[1]):
            raise SdtmFxError(
                f"Fréchet distance: {count} images are too few for {features.shape[1]} features; at least "
                f"{least_images(features.shape[1])} are needed"
            )
    return _distance(features.double(), others.double())


def frechet_estimate(features: Tensor, others: Tensor, *, paired: bool = False) -> Estimate:
    """The distance with a bootstrap interval over the images of the first set.

    Resampled images repeat, which raises the distance; the interval is shifted back by that, so that it lies
    around the distance that was measured.

    Args:
        features: [N, F].
        others: [M, F].
        paired: The sets are two versions of the same images, which are resampled together.

    Raises:
        SdtmFxError: As `frechet_distance`.
    """
    distance = frechet_distance(features, others)
    x, y = features.double(), others.double()
    draws = []
    for row in resampled(len(x), RESAMPLES):
        index = torch.from_numpy(row)
        draws.append(_distance(x[index], y[index] if paired else y))
    tail = (1 - CONFIDENCE) / 2
    low, high = np.quantile(draws, (tail, 1 - tail)) - np.mean(draws) + distance
    return Estimate(distance, max(0.0, float(low)), float(high), len(x))


def _distance(x: Tensor, y: Tensor) -> float:
    root = _root(torch.cov(x.T).reshape(x.shape[1], -1))
    other = torch.cov(y.T).reshape(y.shape[1], -1)
    # tr sqrt(A B) = tr sqrt(A^1/2 B A^1/2), and what stands there is symmetric.
    crossed = torch.linalg.eigvalsh(root @ other @ root).clamp(min=0).sqrt().sum()
    spread = (root @ root).trace() + other.trace() - 2 * crossed
    return max(0.0, float((x.mean(0) - y.mean(0)).square().sum() + spread))


def _root(covariance: Tensor) -> Tensor:
    values, vectors = torch.linalg.eigh(covariance)
    return (vectors * values.clamp(min=0).sqrt()) @ vectors.T
