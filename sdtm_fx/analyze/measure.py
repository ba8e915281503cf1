"""What is measured on the image tokens of one block in one call."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from sdtm_fx.analyze.maths import band_norms, nearest_tokens, wavelet, window_gap, window_quantiles
from sdtm_fx.errors import SdtmFxError
from sdtm_fx.windows import Windows


@dataclass(frozen=True)
class Settings:
    """What to measure.

    Attributes:
        wavelet: An orthogonal wavelet of PyWavelets.
        windows: Edges of the square windows that are compared with the whole grid, each at least 2.
        merge_window: Edge of the windows whose similarity the suggested ratios follow.
        levels: Number of quantiles of that similarity.
        maps: Keep the similarity and distance of every token of the first image.
    """

    wavelet: str = "haar"
    windows: tuple[int, ...] = (2, 4)
    merge_window: int = 2
    levels: int = 33
    maps: bool = False

    def __post_init__(self) -> None:
        """Refuse what cannot be measured on any grid.

        Raises:
            SdtmFxError: The text says what is accepted.
        """
        wavelet(self.wavelet)
        for edge in (*self.windows, self.merge_window):
            if edge < 2:
                raise SdtmFxError(f"analyze: window of {edge}; accepted: an edge of at least 2 tokens")

    def check_grid(self, grid: tuple[int, int]) -> None:
        """Refuse a grid that has no window of a size.

        Raises:
            SdtmFxError: A window is larger than the grid.
        """
        largest = max(*self.windows, self.merge_window)
        if largest > min(grid):
            raise SdtmFxError(
                f"analyze: no window of {largest} x {largest} fits a grid of {grid[0]} x {grid[1]} tokens; choose "
                "smaller windows or a larger image"
            )


@dataclass(frozen=True)
class Measured:
    """What was measured on B images, on the CPU, float32.

    Attributes:
        norms: [B, 5], of `maths.band_norms`.
        similarity: [B], mean over tokens of the cosine to the most similar other token.
        distance: [B], mean grid distance to it, in tokens.
        inside: [B, windows], mean cosine to the most similar other token of the own window.
        gap: [B, windows], what the whole grid has over that.
        quantiles: [B, levels], of the similarity of the merge windows.
        maps: [2, N], similarity and distance of every token of the first image; None where not kept.
    """

    norms: Tensor
    similarity: Tensor
    distance: Tensor
    inside: Tensor
    gap: Tensor
    quantiles: Tensor
    maps: Tensor | None


@torch.no_grad()
def measure(tokens: Tensor, grid: tuple[int, int], settings: Settings, *, maps: bool = False) -> Measured:
    """Measure the image tokens of one block.

    Args:
        tokens: [B, N, D] float, N the tokens of the grid in raster order, on any device.
        grid: (height, width).
        settings: What to measure.
        maps: Keep the maps of the first image.
    """
    near = nearest_tokens(tokens, grid)
    gaps = [window_gap(tokens, near, Windows(grid, (edge, edge))) for edge in settings.windows]
    edge = settings.merge_window
    # One transfer for all numbers: each would make the host wait.
    columns = [
        band_norms(tokens, grid, settings.wavelet),
        near.similarity.mean(dim=1, keepdim=True),
        near.distance.mean(dim=1, keepdim=True),
        *(inside[:, None] for inside, _ in gaps),
        *(gap[:, None] for _, gap in gaps),
        window_quantiles(tokens, Windows(grid, (edge, edge)), settings.levels),
    ]
    count = len(gaps)
    table = torch.cat(columns, dim=1).cpu()
    norms, similarity, distance, inside, gap, quantiles = table.split(
        [5, 1, 1, count, count, settings.levels], dim=1
    )
    kept = torch.stack([near.similarity[0], near.distance[0]]).cpu() if maps else None
    return Measured(norms, similarity[:, 0], distance[:, 0], inside, gap, quantiles, kept)
