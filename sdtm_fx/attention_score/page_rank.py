"""Weighted page rank over the attention of a head: a token matters if tokens that matter attend to it."""

from __future__ import annotations

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
    weighted_sum,
)


def page_rank(
    query: Tensor,
    key: Tensor,
    *,
    iterations: int,
    probes: int | None = None,
    chunk: int = CHUNK,
    scale: float | None = None,
) -> Tensor:
    """Return s after ``s <- Aᵀ s`` from s = 1 / N, per head (AT-EDM, importance from self-attention).

    There is no damping, as in the paper: A is positive and its rows sum to 1, so the iteration converges to the one
    stationary distribution of A. The number of iterations is fixed, where the paper iterates until nothing moves: a
    graph is static. Where text and image attend jointly, only image tokens are given here, and the softmax over them
    alone makes A the walk among image tokens.

    With `probes`, neighbouring tokens are put in spans and the middle query of each stands for all of its span:
    ``s_j <- Σ_p A_pj Σ_{i in span p} s_i``. That iterates on a table of spans, [B, H, S, S], and reads the map twice,
    however many iterations there are. S is the number of spans of ceil(N / probes) tokens.

    Args:
        query: [B, H, N, d] float, those of the image tokens.
        key: [B, H, N, d] float.
        iterations: How often.
        probes: Estimate from about this many queries instead of all N.
        chunk: How many queries to look at together.
        scale: Factor on the logits; 1 / √d by default.

    Returns:
        [B, H, N] float32, positive, summing to 1 per head.

    Raises:
        PlanError: A count is below one.
    """
    check_counts("page_rank", iterations, probes, chunk)
    batch, heads, tokens, _ = query.shape
    length = span_length(tokens, probes)
    scores = torch.full((batch, heads, tokens), 1.0 / tokens, dtype=torch.float32, device=query.device)
    if length == 1:
        for _ in range(iterations):
            scores = carry(query, key, scores, chunk, scale)
        return scores
    rows = probe_rows(query, length)
    mass = span_sums(scores, length)
    if iterations > 1:
        pieces = rows.split(chunk, dim=2)
        table = torch.cat([span_sums(attention_rows(p, key, scale), length) for p in pieces], dim=2)
        for _ in range(iterations - 1):
            mass = weighted_sum(mass, table)
    return carry(rows, key, mass, chunk, scale)
