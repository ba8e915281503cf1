"""Importance of image tokens from their attention to text: who attends to the words that matter, matters."""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor

from sdtm_fx.attention_score.rows import (
    CHUNK,
    attention_rows,
    carry,
    check_counts,
    probe_rows,
    span_length,
    span_sums,
)

CrossScore = Literal["entropy", "hard_clip", "soft_clip", "power"]

_TINY = 1e-6


def query_importance(
    rows: Tensor,
    key_importance: Tensor,
    score: CrossScore,
    *,
    threshold: float = 0.2,
    alpha: float = 5.0,
) -> Tensor:
    """Return the importance of queries from that of the keys that they attend to (AT-EDM, f(A, s_K)).

    With A_ij the attention of query i to key j and s_j the importance of the key:

    * entropy: Σ_j A_ij s_j / (-Σ_j A_ij ln A_ij). The supplement says that dot product rewards and entropy
      penalises; that the two are divided is our reading.
    * hard_clip: Σ_j [A_ij >= threshold] s_j (its equation 2)
    * soft_clip: Σ_j sigmoid(A_ij - threshold) s_j (3)
    * power: Σ_j (β s_j)^(alpha A_ij), β half the number of keys (4)

    Args:
        rows: [..., c, T] float32, rows of the map.
        key_importance: [..., T] float32.
        score: Which.
        threshold: η of the clips.
        alpha: Of the power.

    Returns:
        [..., c] float32, not normalised.
    """
    weight = key_importance[..., None, :]
    if score == "entropy":
        entropy = -torch.special.xlogy(rows, rows).sum(dim=-1)
        return (rows * weight).sum(dim=-1) / entropy.clamp_min(_TINY)
    if score == "hard_clip":
        return ((rows >= threshold) * weight).sum(dim=-1)
    if score == "soft_clip":
        return (torch.sigmoid(rows - threshold) * weight).sum(dim=-1)
    base = (weight * (rows.shape[-1] / 2)).clamp_min(_TINY)
    return torch.exp(alpha * rows * base.log()).sum(dim=-1)


def cross_rank(
    query: Tensor,
    key: Tensor,
    *,
    score: CrossScore,
    iterations: int = 1,
    probes: int | None = None,
    chunk: int = CHUNK,
    scale: float | None = None,
) -> Tensor:
    """Return the importance of image tokens by their attention to text, per head.

    From s_Q = 1 / N, an iteration is s_K <- Aᵀ s_Q and s_Q <- f(A, s_K), s_Q scaled to sum to 1. With `probes`, s_K
    comes from the middle query of each span of ceil(N / probes) tokens, which carries the mass of its span; the last
    s_Q is computed for every token.

    Args:
        query: [B, H, N, d] float, those of the image tokens.
        key: [B, H, T, d] float, those of the text tokens; the softmax runs over them alone.
        score: How the importance of queries comes from that of keys, see `query_importance`.
        iterations: How often.
        probes: Estimate s_K from about this many queries instead of all N.
        chunk: How many queries to look at together.
        scale: Factor on the logits; 1 / √d by default.

    Returns:
        [B, H, N] float32, summing to 1 per head; uniform where every score is 0.

    Raises:
        PlanError: A count is below one.
    """
    check_counts("cross_rank", iterations, probes, chunk)
    batch, heads, tokens, _ = query.shape
    length = span_length(tokens, probes)
    some = query if length == 1 else probe_rows(query, length)
    uniform = torch.full((batch, heads, tokens), 1.0 / tokens, dtype=torch.float32, device=query.device)
    mass = span_sums(uniform, length)
    important = carry(some, key, mass, chunk, scale)
    for _ in range(iterations - 1):
        mass = _scaled(_importance(some, key, important, score, chunk, scale))
        important = carry(some, key, mass, chunk, scale)
    return _scaled(_importance(query, key, important, score, chunk, scale))


def _importance(
    query: Tensor, key: Tensor, important: Tensor, score: CrossScore, chunk: int, scale: float | None
) -> Tensor:
    pieces = query.split(chunk, dim=2)
    return torch.cat([query_importance(attention_rows(p, key, scale), important, score) for p in pieces], -1)


def _scaled(scores: Tensor) -> Tensor:
    total = scores.sum(dim=-1, keepdim=True)
    return torch.where(total > 0, scores / total.clamp_min(1e-30), 1.0 / scores.shape[-1])
