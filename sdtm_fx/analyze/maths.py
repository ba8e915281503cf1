"""Redundancy and frequency of token features: pure functions of tensors, on any device, in float32."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import pywt
import torch
from torch import Tensor

from sdtm_fx.errors import SdtmFxError, nearest
from sdtm_fx.similarity import inverse_norms, window_similarity, without_autocast
from sdtm_fx.windows import Windows

BANDS = ("LL", "LH", "HL", "HH")
"""Sub-bands of one level. LH is detail along the height, which a horizontal edge makes; HL along the width."""

_PAIRS_AT_ONCE = 1 << 24  # 64 MiB of similarities in float32


def wavelet(name: str) -> pywt.Wavelet:
    """Return an orthogonal wavelet of PyWavelets by name, such as "haar" or "db2".

    Raises:
        SdtmFxError: There is no discrete wavelet of that name, or it is not orthogonal, so that the energies
            of its bands would not add up to the energy of the features.
    """
    known = [n for n in pywt.wavelist(kind="discrete") if pywt.Wavelet(n).orthogonal]
    if name not in known:
        raise SdtmFxError(
            f"analyze: no orthogonal wavelet {name!r}{nearest(name, known)}; accepted: {', '.join(known)}"
        )
    return pywt.Wavelet(name)


def dwt2(x: Tensor, name: str = "haar") -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """One level of the two-dimensional discrete wavelet transform.

    The values are those of `pywt.dwt2` with its default mode "symmetric", computed where the tensor is.

    Args:
        x: [..., height, width] float.
        name: An orthogonal wavelet.

    Returns:
        The bands in the order of `BANDS`, each [..., rows, columns] float32. For the Haar wavelet rows and
        columns are half of height and width, rounded up.
    """
    chosen = wavelet(name)
    low, high = (_filtered(x.float(), taps, -2) for taps in (chosen.dec_lo, chosen.dec_hi))
    ll, hl = (_filtered(low, taps, -1) for taps in (chosen.dec_lo, chosen.dec_hi))
    lh, hh = (_filtered(high, taps, -1) for taps in (chosen.dec_lo, chosen.dec_hi))
    return ll, lh, hl, hh


def _filtered(x: Tensor, taps: Sequence[float], dim: int) -> Tensor:
    """Convolve with a filter along one dimension and keep every second value, edges mirrored."""
    length, size = len(taps), x.shape[dim]
    count = (size + length - 1) // 2
    places = torch.arange(2 - length, 2 * count, device=x.device).remainder(2 * size)
    places = torch.where(places < size, places, 2 * size - 1 - places)
    extended = x.index_select(dim, places)
    total = torch.zeros((), dtype=x.dtype, device=x.device)
    for tap, weight in enumerate(taps):
        start = length - 1 - tap
        picked = torch.arange(start, start + 2 * count, 2, device=x.device)
        total = total + weight * extended.index_select(dim, picked)
    return total


def band_norms(tokens: Tensor, grid: tuple[int, int], name: str = "haar") -> Tensor:
    """L2 norms of the sub-bands of token features on their grid.

    Every channel is one picture of the grid; a norm is taken over all coefficients and channels of a band.

    Args:
        tokens: [B, N, D] float, N the tokens of the grid in raster order.
        grid: (height, width).
        name: An orthogonal wavelet.

    Returns:
        [B, 5] float32: the four `BANDS`, then LL once more with the mean over the grid taken out of every
        channel, which leaves the other bands as they are.
    """
    pictures = tokens.float().transpose(1, 2).unflatten(2, grid)
    ll, lh, hl, hh = dwt2(pictures, name)
    # A low-pass filter of an orthogonal wavelet sums to √2, in both directions to 2.
    around_mean = ll - 2 * pictures.mean(dim=(2, 3), keepdim=True)
    bands = (ll, lh, hl, hh, around_mean)
    return torch.stack([torch.linalg.vector_norm(b, dim=(1, 2, 3)) for b in bands], dim=1)


@dataclass(frozen=True)
class Nearest:
    """The most similar other token of every token.

    Attributes:
        similarity: [B, N] float32, its cosine: the degree of redundancy.
        distance: [B, N] float32, the Euclidean distance to it on the grid, in tokens: the location. Of several
            that are equally similar the nearest counts.
    """

    similarity: Tensor
    distance: Tensor


def nearest_tokens(tokens: Tensor, grid: tuple[int, int], *, pairs: int = _PAIRS_AT_ONCE) -> Nearest:
    """Find the most similar other token of every token, over the whole grid.

    Args:
        tokens: [B, N, D] float, N = height * width >= 2, in raster order. A token of zeros has cosine 0 to all.
        grid: (height, width).
        pairs: How many similarities exist at a time; bounds the memory, not the result.
    """
    unit = _unit(tokens)
    batch, count, _ = unit.shape
    rows = max(1, pairs // count)
    numbers = torch.arange(count, device=unit.device)
    similarity, distance = torch.empty(2, batch, count, device=unit.device)
    with without_autocast(unit.device):
        for sample in range(batch):
            for start in range(0, count, rows):
                part = numbers[start : start + rows]
                cosine = unit[sample, part] @ unit[sample].T
                cosine[part - start, part] = -math.inf
                best = cosine.amax(dim=1)
                away = grid_distance(part[:, None], numbers[None], grid[1])
                near = away.masked_fill_(cosine < best[:, None], math.inf).amin(dim=1)
                similarity[sample, part], distance[sample, part] = best, near
    return Nearest(similarity, distance)


def best_in_windows(tokens: Tensor, windows: Windows) -> Tensor:
    """Cosine of every token to the most similar other token of its own window.

    Args:
        tokens: [B, N, D] float, in raster order.
        windows: Of at least two tokens, and at least one of them fits the grid.

    Returns:
        [B, windows, K] float32.
    """
    unit = _unit(tokens)
    index = windows.tokens(unit.device)
    inside = unit[:, index.reshape(-1)].unflatten(1, index.shape)
    with without_autocast(unit.device):
        cosine = inside @ inside.transpose(-1, -2)
    own = torch.eye(windows.size, dtype=torch.bool, device=unit.device)
    return cosine.masked_fill(own, -math.inf).amax(dim=-1)


def window_gap(tokens: Tensor, near: Nearest, windows: Windows) -> tuple[Tensor, Tensor]:
    """How similar the best partner inside a window is, and what the best of the whole grid has over it.

    Args:
        tokens: [B, N, D] float, in raster order.
        near: Of the same tokens.
        windows: As for `best_in_windows`; tokens that fill no window do not count.

    Returns:
        Two [B] float32: the mean over tokens inside windows, and the mean gap, at least 0 up to rounding.
    """
    inside = best_in_windows(tokens, windows)
    overall = windows.split(near.similarity)
    return inside.mean(dim=(1, 2)), (overall - inside).mean(dim=(1, 2))


def window_quantiles(tokens: Tensor, windows: Windows, levels: int) -> Tensor:
    """Quantiles over the windows of their mean pairwise cosine, which ranks windows in SSM.

    Args:
        tokens: [B, N, D] float, in raster order.
        windows: The windows.
        levels: Number of quantiles, spread evenly from 0 (the minimum) to 1 (the maximum).

    Returns:
        [B, levels] float32, not descending.
    """
    scores = window_similarity(tokens, windows)
    return torch.quantile(scores, torch.linspace(0, 1, levels, device=scores.device), dim=1).T


def grid_distance(left: Tensor, right: Tensor, width: int) -> Tensor:
    """Euclidean distance between tokens of a grid, float32.

    Args:
        left: Numbers of tokens in raster order, int64.
        right: The same; the two broadcast.
        width: Columns of the grid.
    """
    down = left.div(width, rounding_mode="floor") - right.div(width, rounding_mode="floor")
    across = left.remainder(width) - right.remainder(width)
    return torch.hypot(down.float(), across.float())


def random_distance(grid: tuple[int, int]) -> float:
    """Mean grid distance between two different tokens: what similarity that ignores place would give."""
    height, width = grid
    down = torch.arange(height, dtype=torch.float64)
    across = torch.arange(width, dtype=torch.float64)
    # A shift of k rows occurs (height - k) times in each direction, of 0 rows `height` times in one.
    rows = torch.where(down > 0, 2 * (height - down), torch.tensor(float(height), dtype=torch.float64))
    columns = torch.where(across > 0, 2 * (width - across), torch.tensor(float(width), dtype=torch.float64))
    total = (rows[:, None] * columns[None] * torch.hypot(down[:, None], across[None])).sum()
    tokens = height * width
    return float(total / (tokens * (tokens - 1)))


def _unit(tokens: Tensor) -> Tensor:
    x = tokens.float()
    return x * inverse_norms(x)[..., None]
