"""The result of an analysis: arrays over images, steps and blocks."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from sdtm_fx.analyze.maths import random_distance
from sdtm_fx.analyze.measure import Measured, Settings

Array = npt.NDArray[np.float64]

KINDS = ("output", "update")
"""What is measured of every block: the image tokens it returns, and what it added to those it was given."""


@dataclass(frozen=True, eq=False)
class Features:
    """Measurements of one kind of features. I images, S steps, B blocks; all arrays float64.

    Attributes:
        norms: [I, S, B, 5], L2 norms of LL, LH, HL, HH, and of LL around its mean.
        similarity: [I, S, B], degree of redundancy: mean cosine to the most similar other token.
        distance: [I, S, B], location of redundancy: mean grid distance to it, in tokens.
        inside: [I, S, B, W], mean cosine to the most similar other token of the own window.
        gap: [I, S, B, W], what the whole grid has over that, at least 0 up to rounding.
        quantiles: [I, S, B, L], of the mean pairwise cosine of merge windows, from minimum to maximum.
        maps: [2, S, B, height, width], similarity and distance of every token of the first image, or None.
    """

    norms: Array
    similarity: Array
    distance: Array
    inside: Array
    gap: Array
    quantiles: Array
    maps: Array | None

    @property
    def detail(self) -> Array:
        """[I, S, B]: share of LH, HL and HH in the energy around the mean of every channel.

        (LH² + HL² + HH²) / (LL'² + LH² + HL² + HH²), with LL' the band LL around its mean; 0 for features
        that are equal everywhere. The mean is left out because it says nothing of the picture and may be
        most of the energy.
        """
        energy = self.norms**2
        high = energy[..., 1:4].sum(axis=-1)
        total = high + energy[..., 4]
        return np.divide(high, total, out=np.zeros_like(high), where=total > 0)


@dataclass(frozen=True, eq=False)
class Analysis:
    """What was measured.

    Attributes:
        model: Class of the model.
        recipe: Name of the recipe that gave the token layout.
        blocks: Paths of the B blocks.
        grid: (height, width) in tokens.
        settings: What was measured.
        output: Of the image tokens that blocks return.
        update: Of what blocks add to the image tokens that they are given.
    """

    model: str
    recipe: str
    blocks: tuple[str, ...]
    grid: tuple[int, int]
    settings: Settings
    output: Features
    update: Features

    @property
    def images(self) -> int:
        """Number of images."""
        return self.output.similarity.shape[0]

    @property
    def steps(self) -> int:
        """Number of denoising steps."""
        return self.output.similarity.shape[1]

    @property
    def random_distance(self) -> float:
        """Mean grid distance between two tokens drawn at random: the scale for `Features.distance`."""
        return random_distance(self.grid)

    def kinds(self) -> dict[str, Features]:
        """The features by name, in the order of `KINDS`."""
        return dict(zip(KINDS, (self.output, self.update), strict=True))

    def scalars(self, kind: str) -> dict[str, Array]:
        """Every [I, S, B] array of a kind of features, by the name that data files use."""
        features = self.kinds()[kind]
        named = dict(
            zip(("LL", "LH", "HL", "HH", "LL_around_mean"), np.moveaxis(features.norms, -1, 0), strict=True)
        )
        named |= {"detail_share": features.detail}
        named |= {"similarity": features.similarity, "distance": features.distance}
        for place, edge in enumerate(self.settings.windows):
            named[f"similarity_in_{edge}x{edge}"] = features.inside[..., place]
            named[f"gap_to_{edge}x{edge}"] = features.gap[..., place]
        return named


def assemble(
    generations: Sequence[Sequence[Sequence[tuple[Measured, ...]]]], grid: tuple[int, int]
) -> tuple[Features, ...]:
    """Put measurements together, one `Features` for each of `KINDS`.

    Args:
        generations: By generation, step and block; a generation may hold several images.
        grid: (height, width) in tokens.
    """
    return tuple(
        _features([[[pair[kind] for pair in step] for step in steps] for steps in generations], grid)
        for kind in range(len(KINDS))
    )


def _features(generations: list[list[list[Measured]]], grid: tuple[int, int]) -> Features:
    def gather(pick: Callable[[Measured], Tensor]) -> Any:
        parts = [
            torch.stack([torch.stack([pick(m) for m in step], 1) for step in steps], 1)
            for steps in generations
        ]
        return torch.cat(parts).double().numpy()

    kept = [[m.maps for m in step if m.maps is not None] for step in generations[0]]
    maps = torch.stack([torch.stack(step, 1) for step in kept], 1).unflatten(-1, grid) if all(kept) else None
    return Features(
        norms=gather(lambda m: m.norms),
        similarity=gather(lambda m: m.similarity),
        distance=gather(lambda m: m.distance),
        inside=gather(lambda m: m.inside),
        gap=gather(lambda m: m.gap),
        quantiles=gather(lambda m: m.quantiles),
        maps=None if maps is None else maps.double().numpy(),
    )
