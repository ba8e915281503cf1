"""What guidance changes at each token: read off the output of a call, for the plans of the next (IBTM)."""

from __future__ import annotations

from typing import Any

import torch
from torch.nn import functional

from sdtm_fx.errors import PlanError


def guidance_change(output: Any, grid: tuple[int, int]) -> torch.Tensor:
    """Return the channel mean of ``|eps_text - eps_uncond|``, averaged over the latent pixels of each token.

    The map of the two halves is one, so both get it.

    Args:
        output: What the model returned for a batch of two stacked guidance halves: a tensor [2b, C, H, W], or a
            tuple or output class that holds it first.
        grid: Height and width in tokens.

    Returns:
        [2b, N] float32.

    Raises:
        PlanError: The output is no such tensor.
    """
    first = output if isinstance(output, torch.Tensor) else next(iter(_values(output)), None)
    if not isinstance(first, torch.Tensor) or first.ndim != 4 or first.shape[0] % 2:
        found = tuple(first.shape) if isinstance(first, torch.Tensor) else type(first).__name__
        raise PlanError(
            f"importance: the model returned {found}; accepted [2 * batch, channels, height, width], the "
            "prediction for both guidance halves in latent space"
        )
    negative, positive = first.detach().float().chunk(2)
    change = (positive - negative).abs().mean(dim=1, keepdim=True)
    return functional.adaptive_avg_pool2d(change, grid).flatten(1).repeat(2, 1)


def _values(output: Any) -> tuple[Any, ...]:
    """The fields of a tuple, or of one of diffusers' output classes."""
    return tuple(output.values()) if isinstance(output, dict) else tuple(output)
