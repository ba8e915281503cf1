"""Rotary tables that follow the tokens."""

from __future__ import annotations

import torch

from sdtm_fx.base_plan import Plan
from sdtm_fx.errors import PlanError


def gather_rotary(
    plan: Plan,
    table: torch.Tensor,
    before: int = 0,
    behind: int = 0,
    axis: int = 0,
    text_last: bool = False,
) -> torch.Tensor:
    """[T + N, D] to [T + M, D]: each slot takes the position of the token that represents it.

    Rows of other tokens stay. Those beyond the image stream belong to text, which comes first or last.

    Args:
        plan: The plan over the image tokens that may be merged.
        table: The position table.
        before: Image tokens in front of those that may be merged (protected frames).
        behind: Tokens of references, which follow them.
        axis: The axis of the sequence.
        text_last: Whether text rows follow those of the image; otherwise they stand in front.

    Raises:
        PlanError: The plan differs between samples, and one table cannot serve them; or there are too few rows.
    """
    if plan.positions.shape[0] != 1:
        raise PlanError(
            "rotary tables have no batch axis, so merged attention needs one plan for the batch: "
            "add `batch` to plan.share in the recipe"
        )
    text = table.shape[axis] - before - plan.tokens - behind
    if text < 0:
        raise PlanError(
            f"rotary tables of shape {tuple(table.shape)} have {table.shape[axis]} rows along axis {axis}, fewer than "
            f"the {before + plan.tokens + behind} image tokens; check `rotary_axis` in the recipe"
        )
    front, back = (before, behind + text) if text_last else (text + before, behind)
    return table.index_select(axis, plan.placed(front, back).positions[0])


def cut_rotary(plan: Plan, table: torch.Tensor, axis: int = 0) -> torch.Tensor:
    """[T + N, D] to [T + M, D]: the leading rows, whatever tokens the slots hold (``passes.gather_rotary: false``)."""
    return table.narrow(axis, 0, table.shape[axis] - plan.removed)
