"""Which token another one attends to most: whose value it takes when it is left out."""

from __future__ import annotations

import torch
from torch import Tensor

from sdtm_fx.attention_score.heads import AttentionHeads
from sdtm_fx.attention_score.rows import CHUNK, attention_rows


def most_attended(heads: AttentionHeads, sources: Tensor, keepers: Tensor, *, chunk: int = CHUNK) -> Tensor:
    """Return, for every source, the keeper that its attention row is largest at, heads averaged (AT-EDM).

    Rows are softmaxes over all image tokens, per head, and are taken `chunk` at a time.

    Args:
        heads: Queries and keys of the image tokens.
        sources: [B, S] int64 tokens.
        keepers: [B, M] int64 tokens, at least one.
        chunk: How many sources to look at together.

    Returns:
        [B, S] int64 tokens, each one of the keepers of its sample; the first in raster order on ties.
    """
    batch, _, tokens, _ = heads.key.shape
    keeps = torch.zeros(batch, tokens, dtype=torch.bool, device=keepers.device).scatter(1, keepers, True)
    found = []
    for piece in sources.split(chunk, dim=1):
        rows = torch.take_along_dim(heads.query, piece[:, None, :, None], dim=2)
        attention = attention_rows(rows, heads.key, heads.scale).mean(dim=1)
        found.append(torch.where(keeps[:, None], attention, -1.0).argmax(dim=2))
    return torch.cat(found, dim=1)
