"""Rotary tables that follow the tokens."""

from __future__ import annotations

import torch

from sdtm_fx.base_plan import Plan
from sdtm_fx.errors import PlanError


def gather_rotary(plan: Plan, table: torch.Tensor) -> torch.Tensor:
    """[T + N, D] to [T + M, D]: each slot takes the position of the token that represents it.

    The first T rows belong to tokens in front of the image (text) and stay.

    Raises:
        PlanError: The plan differs between samples; one table cannot serve them.
    """
    if plan.positions.shape[0] != 1:
        raise PlanError(
            "rotary tables have no batch axis, so merged attention needs one plan for the batch: "
            "add `batch` to plan.share in the recipe"
        )
    prefix = table.shape[0] - plan.tokens
    return table.index_select(0, plan.after_prefix(prefix).positions[0])


def cut_rotary(plan: Plan, table: torch.Tensor) -> torch.Tensor:
    """[T + N, D] to [T + M, D]: the leading rows, whatever tokens the slots hold (``passes.gather_rotary: false``)."""
    return table[: table.shape[0] - plan.removed]
