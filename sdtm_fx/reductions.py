"""What a slot of several tokens holds: their mean, the value of one of them, or a mean of full length."""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor

Reduce = Literal["mean", "prune", "mlerp"]
"""``mean``: the mean of the tokens (ToMeSD, SDTM). ``prune``: the value of the token that represents the slot; the
others have no say. ``mlerp``: the direction of the mean, with the norm of the longest token (ToFu)."""

_TINY = 1e-12  # a mean shorter than this has no direction; such a slot becomes zero


def lengthen(means: Tensor, longest: Tensor) -> Tensor:
    """Give every mean the norm of the longest token of its slot (ToFu, norm-preserving average).

    Averaging shortens: tokens that point apart cancel each other, which a layer that is not linear sees as another
    input. Which norm a slot gets was found in no source but second-hand: the largest of its tokens.

    Args:
        means: [B, M, D] float32.
        longest: [B, M] float32, norms.

    Returns:
        [B, M, D] float32; zero where the tokens cancel out.
    """
    norms = torch.linalg.vector_norm(means, dim=-1, keepdim=True)
    return means / norms.clamp_min(_TINY) * longest[..., None]
