"""Cosine similarity between tokens, in float32 whatever the dtype of the tokens."""

from __future__ import annotations

import itertools
from contextlib import AbstractContextManager, nullcontext

import torch
from torch import Tensor
from torch.nn import functional

from sdtm_fx.rows import flat_rows
from sdtm_fx.windows import Windows

EPSILON = 1e-12
"""Norms below this count as zero: such a token has cosine 0 to every token."""


def inverse_norms(x: Tensor) -> Tensor:
    """Return 1 / max(‖x‖, EPSILON) over the last dimension of a float32 tensor."""
    return torch.linalg.vector_norm(x, dim=-1).clamp_min(EPSILON).reciprocal()


def window_similarity(metric: Tensor, windows: Windows, *, include_diagonal: bool = False) -> Tensor:
    """Return the mean cosine between the tokens of each window (SDTM, P_sim).

    Uses Σ_ij cos(x_i, x_j) = ‖Σ_i x̂_i‖², so the cost is one pass over the tokens and no table of pairs
    exists: P_sim = (‖Σ x̂‖² - Σ ‖x̂‖²) / (K (K - 1)).

    Args:
        metric: [B, N, D] float, N the tokens of the grid in raster order.
        windows: The windows, of at least two tokens unless `include_diagonal`.
        include_diagonal: Take the mean over all K² pairs, each token with itself included.

    Returns:
        [B, windows] float32.
    """
    x = metric.float()
    norms = torch.linalg.vector_norm(x, dim=-1)
    inverse = norms.clamp_min(EPSILON).reciprocal()
    if torch.compiler.is_compiling():
        total = _window_sum_fusible(x, inverse, windows)
    else:
        total = _window_sum_kernel(x, inverse, windows)
    pairs = torch.linalg.vector_norm(total, dim=-1).square()
    if include_diagonal:
        return pairs / windows.size**2
    own = window_mean((norms * inverse).square(), windows) * windows.size
    return (pairs - own) / (windows.size * (windows.size - 1))


def _window_sum_kernel(x: Tensor, weight: Tensor, windows: Windows) -> Tensor:
    """Weighted sum over each window, [B, windows, D] float32: one kernel reads every token once."""
    batch, tokens, width = x.shape
    index = windows.tokens(x.device)
    rows = flat_rows(index.reshape(1, -1), batch, tokens).view(-1, windows.size)
    weights = weight.reshape(-1)[rows]
    flat = x.reshape(batch * tokens, width)
    total = functional.embedding_bag(rows, flat, per_sample_weights=weights, mode="sum")
    return total.view(batch, windows.count, width)


def _window_sum_fusible(x: Tensor, weight: Tensor, windows: Windows) -> Tensor:
    """The same as strided elementwise work, which a compiler fuses with the norm that follows."""
    batch, _, width = x.shape
    grid = x.reshape(batch, *windows.grid, width)
    scale = weight.view(batch, *windows.grid, 1)
    total = x.new_zeros(())
    for place in itertools.product(*map(range, windows.edges)):
        steps = zip(place, windows.covered, windows.edges, strict=True)
        inside = (slice(None), *(slice(start, side, edge) for start, side, edge in steps))
        total = total + grid[inside] * scale[inside]
    return total.flatten(1, len(windows.grid))


def window_mean(values: Tensor, windows: Windows) -> Tensor:
    """Return the mean of per-token values over each window: [B, N] to [B, windows] float32."""
    return windows.split(values.float()).mean(dim=2)


def without_autocast(device: torch.device) -> AbstractContextManager[object]:
    """Return a context in which matrix products keep float32, inside `torch.autocast` too."""
    return torch.autocast(device.type, enabled=False) if _has_autocast(device.type) else nullcontext()


# torch 2.8 would leave the graph to ask
@torch.compiler.assume_constant_result  # type: ignore[untyped-decorator]
def _has_autocast(device: str) -> bool:
    return torch.amp.is_autocast_available(device)
