"""What guidance changes at each token: read off the output of a call, for the plans of the next (IBTM)."""

from __future__ import annotations

from typing import Any

import torch
from torch.nn import functional

from sdtm_fx.errors import PlanError
from sdtm_fx.grids import TokenGrid
from sdtm_fx.runtime.state import BranchState


def guidance_change(output: Any, grid: TokenGrid, protected_frames: int = 0) -> torch.Tensor:
    """Return the channel mean of ``|eps_text - eps_uncond|``, averaged over the latent pixels of each token.

    The map of the two halves is one, so both get it.

    Args:
        output: What the model returned for a batch of two stacked guidance halves: a tensor [2b, C, H, W], with frames
            [2b, C, F, H, W], or a tuple or output class that holds it first.
        grid: Height and width of the tokens that may be merged, behind their frames where there are some.
        protected_frames: Frames in front of them.

    Returns:
        [2b, N] float32.

    Raises:
        PlanError: The output is no such tensor.
    """
    first = output if isinstance(output, torch.Tensor) else next(iter(_values(output)), None)
    if not isinstance(first, torch.Tensor) or first.ndim != len(grid) + 2 or first.shape[0] % 2:
        found = tuple(first.shape) if isinstance(first, torch.Tensor) else type(first).__name__
        raise PlanError(
            f"importance: the model returned {found}; accepted [2 * batch, channels, "
            f"{'frames, ' if len(grid) == 3 else ''}height, width], the prediction for both guidance halves in latent "
            "space"
        )
    negative, positive = first.detach().float().chunk(2)
    change = (positive - negative).abs().mean(dim=1, keepdim=True)
    if len(grid) == 3:
        whole = (grid[0] + protected_frames, *grid[1:])
        change = functional.adaptive_avg_pool3d(change, whole)[:, :, protected_frames:]
        return change.flatten(1).repeat(2, 1)
    return functional.adaptive_avg_pool2d(change, (grid[0], grid[1])).flatten(1).repeat(2, 1)


def pooled(scores: torch.Tensor, grid: TokenGrid, own: TokenGrid) -> torch.Tensor:
    """Return scores of the tokens of a grid, [B, N], averaged over the tokens of another: [B, M]."""
    if own == grid:
        return scores
    maps = scores.unflatten(1, (-1, *grid[-2:]))  # frame by frame
    return functional.adaptive_avg_pool2d(maps, (own[-2], own[-1])).flatten(1)


def check_importance(state: BranchState, stacked: int, *, rehearses: bool) -> None:
    """Refuse to plan by scores that no call has handed on; a rehearsal takes what is there."""
    if state.has_importance or rehearses:
        return
    why = (
        "no call came before this one, and a step that is kept dense has to (keep_dense.first_steps: 1)"
        if stacked == 2
        else "this call holds no two guidance halves in one batch: the model runs without guidance "
        "(guidance-distilled models do), or its halves are separate calls; in a loop of your own, say so by "
        "sdtm_fx.steps(model, count, cfg_halves=2)"
    )
    raise PlanError(f"importance: found no scores of the step before; {why}")


def _values(output: Any) -> tuple[Any, ...]:
    """The fields of a tuple, or of one of diffusers' output classes."""
    return tuple(output.values()) if isinstance(output, dict) else tuple(output)
