"""Rows of an attention map: some queries at a time, over all keys."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional

from sdtm_fx.errors import PlanError
from sdtm_fx.similarity import without_autocast

CHUNK = 256
"""Rows that are looked at together."""


def attention_rows(query: Tensor, key: Tensor, scale: float | None) -> Tensor:
    """Return softmax(Q Kᵀ · scale) of some queries.

    Args:
        query: [B, H, c, d] float, as the attention kernel gets it (normed, rotated).
        key: [B, H, L, d] float.
        scale: Factor on the logits; None is 1 / √d.

    Returns:
        [B, H, c, L] float32; every row sums to 1.
    """
    factor = query.shape[-1] ** -0.5 if scale is None else scale
    with without_autocast(query.device):
        return torch.softmax((query * factor) @ key.mT, dim=-1, dtype=torch.float32)


def weighted_sum(weights: Tensor, rows: Tensor) -> Tensor:
    """Return Σ_i w_i · row_i in float32, inside `torch.autocast` too: [..., c] and [..., c, L] to [..., L]."""
    with without_autocast(rows.device):
        return (weights[..., None, :] @ rows).squeeze(-2)


def carry(query: Tensor, key: Tensor, mass: Tensor, chunk: int, scale: float | None) -> Tensor:
    """Return Aᵀ · mass, `chunk` rows at a time.

    Args:
        query: [B, H, c, d] float.
        key: [B, H, L, d] float.
        mass: [B, H, c] float32, what each query has to give.
        chunk: How many queries to look at together.
        scale: As for `attention_rows`.

    Returns:
        [B, H, L] float32, what each key receives; the sum stays.
    """
    total = mass.new_zeros(*mass.shape[:2], key.shape[2])
    for piece, carried in zip(query.split(chunk, dim=2), mass.split(chunk, dim=2), strict=True):
        total = total + weighted_sum(carried, attention_rows(piece, key, scale))
    return total


def span_length(tokens: int, probes: int | None) -> int:
    """Return how many neighbouring tokens one probe stands for; 1 is every token for itself."""
    return 1 if probes is None or probes >= tokens else -(-tokens // probes)


def probe_rows(query: Tensor, length: int) -> Tensor:
    """Return the middle query of each span of `length` tokens: [B, H, N, d] to [B, H, ceil(N / length), d]."""
    tokens = query.shape[2]
    first = torch.arange(0, tokens, length, device=query.device)
    last = (first + length - 1).clamp_max(tokens - 1)
    return query.index_select(2, (first + last).div(2, rounding_mode="floor"))


def span_sums(values: Tensor, length: int) -> Tensor:
    """Return the sum over each span of `length` neighbours on the last axis: [..., N] to [..., ceil(N / length)]."""
    missing = -values.shape[-1] % length
    return functional.pad(values, (0, missing)).unflatten(-1, (-1, length)).sum(dim=-1)


def check_counts(name: str, iterations: int, probes: int | None, chunk: int) -> None:
    """Raise PlanError unless all counts are one or more."""
    if min(iterations, chunk) < 1 or (probes is not None and probes < 1):
        raise PlanError(
            f"{name}: found iterations {iterations}, probes {probes} and chunk {chunk}; accepted counts of one or more"
        )
