"""How much attention each image token receives: column sums of the map."""

from __future__ import annotations

import torch
from torch import Tensor

from sdtm_fx.attention_score.rows import CHUNK, attention_rows
from sdtm_fx.errors import PlanError


def received_attention(
    query: Tensor,
    key: Tensor,
    *,
    image: tuple[int, int],
    probes: int | None = None,
    chunk: int = CHUNK,
    scale: float | None = None,
) -> Tensor:
    """Return the attention that image tokens receive from image queries (SDTM, for P_ina).

    The softmax runs over all keys, text included; only the columns of image keys are kept. Queries are
    taken `chunk` at a time, so the largest table is [B, H, chunk, Lk].

    Args:
        query: [B, H, Lq, d] float, as the attention kernel gets it (normed, rotated).
        key: [B, H, Lk, d] float.
        image: Start and length of the image tokens in both sequences.
        probes: Use this many image queries, evenly spread, instead of all N.
        chunk: How many queries to look at together.
        scale: Factor on the logits; 1 / √d by default.

    Returns:
        [B, N] float32, mean over heads and queries.

    Raises:
        PlanError: The image span does not fit, or a count is below one.
    """
    start, length = image
    _check(query, key, image, probes, chunk)
    rows = query[:, :, start : start + length]
    if probes is not None and probes < length:
        # The middle of `probes` equal spans: spread over the whole image, in static positions.
        middle = torch.arange(probes, device=query.device) * 2 + 1
        rows = rows.index_select(2, (middle * length).div(2 * probes, rounding_mode="floor"))
    total = torch.zeros(query.shape[0], length, dtype=torch.float32, device=query.device)
    for piece in rows.split(chunk, dim=2):
        weights = attention_rows(piece, key, scale)
        total = total + weights[..., start : start + length].sum(dim=(1, 2))
    return total / (rows.shape[1] * rows.shape[2])


def _check(query: Tensor, key: Tensor, image: tuple[int, int], probes: int | None, chunk: int) -> None:
    start, length = image
    if start < 0 or length < 1 or start + length > min(query.shape[2], key.shape[2]):
        raise PlanError(
            f"received_attention: found image tokens {start} to {start + length} in sequences of "
            f"{query.shape[2]} queries and {key.shape[2]} keys; accepted a span inside both"
        )
    if chunk < 1 or (probes is not None and probes < 1):
        raise PlanError(
            f"received_attention: found chunk {chunk} and probes {probes}; accepted counts of one or more"
        )
