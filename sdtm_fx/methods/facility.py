"""Facility location: tokens that stand for all others, chosen greedily (ToMA, equation 5 and algorithm 1)."""

from __future__ import annotations

import torch
from torch import Tensor

_TIE = 1e-6


def facility_location(similarity: Tensor, count: int) -> Tensor:
    """Choose destinations T that maximise f(T) = Σ_i max_{j in T} S_ij, one after the other.

    With c_i the similarity of token i to the nearest chosen one, the next is the v with the largest gain
    Σ_i max(0, S_iv - c_i); the first has the largest sum Σ_i S_iv. A token is chosen once (the released code of
    ToMA may choose one again when every gain is zero). On ties the first token wins, so equal tokens are chosen
    in their order. Gains that differ by less than a millionth of V are ties: two tokens that are nearer to each
    other than to any destination gain exactly as much, and rounding must not decide between them.

    f(T) + V, which is 0 for no destination since cosines are at least -1, is monotone and submodular, so what is
    chosen reaches 1 - 1/e of its optimum (Nemhauser, Wolsey and Fisher 1978); where no similarity is negative, f
    itself does. The work is `count` passes over the table, one after the other; a compiled graph holds them all,
    so this is meant for regions of tens or hundreds of tokens.

    Args:
        similarity: [..., V, V] float, symmetric; cosines.
        count: Number of destinations, 1 to V.

    Returns:
        [..., count] int64, in the order in which they were chosen.
    """
    size = similarity.shape[-1]
    token = torch.arange(size, device=similarity.device)
    gain = similarity.sum(dim=-2)
    nearest = torch.full_like(gain, -torch.inf)
    taken = torch.zeros_like(gain, dtype=torch.bool)
    chosen: list[Tensor] = []
    for _ in range(count):
        if chosen:
            gain = (similarity - nearest[..., None]).clamp_min(0).sum(dim=-2)
        left = gain.masked_fill(taken, -torch.inf)
        best = left >= left.amax(dim=-1, keepdim=True) - _TIE * size
        pick = best.to(torch.uint8).argmax(dim=-1, keepdim=True)
        chosen.append(pick)
        taken = taken | (token == pick)
        column = pick[..., None].expand(*similarity.shape[:-1], 1)
        nearest = torch.maximum(nearest, similarity.gather(-1, column)[..., 0])
    return torch.cat(chosen, dim=-1)


def scanned_pairs(regions: int, size: int, count: int) -> int:
    """Return how many pairs of tokens `facility_location` looks at: a subtraction, a maximum and an addition each."""
    return regions * size * size * count
