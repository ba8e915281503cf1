"""Gathers of rows, per sample or the same for a batch."""

from __future__ import annotations

import torch
from torch import Tensor


def flat_rows(rows: Tensor, batch: int, length: int) -> Tensor:
    """Turn row numbers per sample, [P, L], into row numbers of the flattened batch, [B * L]."""
    if batch == 1:
        return rows.reshape(-1)
    first = torch.arange(batch, device=rows.device)[:, None] * length
    return (rows + first).reshape(-1)


def take_rows(x: Tensor, rows: Tensor) -> Tensor:
    """Gather rows of [B, N, D] by [P, L] indices: [B, L, D]."""
    if rows.shape[0] == 1:
        return x.index_select(1, rows[0])
    batch, length, width = x.shape
    if torch.compiler.is_compiling():
        # A compiler fuses this with its neighbours; the flat view below would stand in the way.
        return x[torch.arange(batch, device=x.device)[:, None], rows]
    # A flat index_select copies whole rows; torch.gather would go element by element.
    flat = x.reshape(batch * length, width).index_select(0, flat_rows(rows, batch, length))
    return flat.view(batch, rows.shape[1], width)
