"""What a span has to do with an error between its blocks."""

from __future__ import annotations

import re

import torch

from sdtm_fx.errors import PlanError
from sdtm_fx.grids import tokens_on
from sdtm_fx.recipe.schema import Recipe
from sdtm_fx.runtime.call import Call
from sdtm_fx.runtime.runtime import Runtime


def blame_span(
    recipe: Recipe,
    runtime: Runtime,
    model: torch.nn.Module,
    call: Call,
    error: RuntimeError,
    *,
    compiled: bool,
) -> None:
    """Say what a span has to do with it where shapes do not fit between its blocks.

    Args:
        recipe: The recipe.
        runtime: That of the model; it knows what is open.
        model: The model.
        call: The call that failed.
        error: How it failed.
        compiled: Whether compiled code ran, in which what is open is not known outside.

    Raises:
        PlanError: A span is to blame.
    """
    stage = None if call.variant is None else call.variant.stage
    ids = [span.id for span in recipe.spans]
    spans = [name for name in ([] if stage is None else recipe.stages[stage].sites) if name in ids]
    inside = [name for name in spans if name in runtime.spans or compiled]
    if not inside or not re.search(r"\bsize|\bshape", str(error)):
        return
    tokens = tokens_on(call.grid)
    raise PlanError(
        f"span {inside[0]!r} keeps {tokens - call.phase.remove} of {tokens} image tokens between its blocks, and "
        f"{type(model).__name__} needs all of them there: it adds something of full length (ControlNet residuals "
        "bear spans of one block only), or leaves out the block that ends the span (skip_layers, a cache): "
        f"{error}"
    ) from error
