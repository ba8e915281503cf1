"""The operations by which blocks enter and leave a span, of merged tokens or of blocks that are forecast."""

from __future__ import annotations

import torch

from sdtm_fx.base_plan import Plan
from sdtm_fx.errors import PlanError
from sdtm_fx.runtime.call import BlockContext, OpenSpan, OpenStream
from sdtm_fx.runtime.ops import store_feature
from sdtm_fx.runtime.rotary_ops import cut_rotary, gather_rotary


def enter_span(
    ctx: BlockContext, plan: Plan, tokens: torch.Tensor, name: str, keeps_stream: bool
) -> torch.Tensor:
    """Begin a span: [B, N, D] to [B, M, D].

    Args:
        ctx: The block in the current call.
        plan: The plan of the span, over the image tokens that may be merged.
        tokens: The stream of image tokens.
        name: Id of the span.
        keeps_stream: Whether the stream is wanted again at the end.
    """
    span = OpenSpan(plan, tokens if keeps_stream else None, ctx.block, ctx.before, ctx.behind)
    ctx.spans[name] = span
    return span.placed.merge(tokens)


def inside_span(ctx: BlockContext, tokens: torch.Tensor, name: str) -> torch.Tensor:
    """Check that a block gets the merged tokens of a span, and hand them on.

    Raises:
        PlanError: The span was not entered in this call, or the tokens are others.
    """
    kept = opened_span(ctx, name).kept
    if tokens.shape[1] != kept:
        raise PlanError(
            f"block {ctx.block} is inside span {name!r} and got {tokens.shape[1]} image tokens instead of {kept}"
        )
    return tokens


def leave_span(ctx: BlockContext, tokens: torch.Tensor, name: str) -> torch.Tensor:
    """End a span: [B, M, D] to [B, N, D].

    The stream where it began counts fully where the residual is dense: x + unmerge(y - merge(x)).

    Raises:
        PlanError: The span was not entered in this call.
    """
    span = opened_span(ctx, name)
    del ctx.spans[name]
    if span.stream is None:
        return span.placed.unmerge(tokens)
    # Merged once more rather than kept since: blocks may work on their tokens in place.
    placed = span.placed
    return span.stream + placed.unmerge(tokens - placed.merge(span.stream))


def span_rotary(ctx: BlockContext, table: torch.Tensor, name: str, axis: int = 0) -> torch.Tensor:
    """[T + N, D] to [T + M, D]: the rows of a position table that belong to the merged tokens of a span."""
    span = opened_span(ctx, name)
    return gather_rotary(span.plan, table, span.before, span.behind, axis)


def cut_span_rotary(ctx: BlockContext, table: torch.Tensor, name: str, axis: int = 0) -> torch.Tensor:
    """The same, but the leading rows, whatever tokens the slots hold (``passes.gather_rotary: false``)."""
    return cut_rotary(opened_span(ctx, name).plan, table, axis=axis)


def opened_span(ctx: BlockContext, name: str) -> OpenSpan:
    """The span that a block is inside of.

    Raises:
        PlanError: It was not entered in this call.
    """
    span = ctx.spans.get(name)
    if not isinstance(span, OpenSpan):
        raise _not_begun(ctx, name)
    return span


def begin_stream(ctx: BlockContext, tokens: torch.Tensor, name: str) -> torch.Tensor:
    """Begin a span that is forecast or stored for: note the image stream, [B, N, D], and hand it on."""
    ctx.spans[name] = OpenStream(tokens.clone())  # blocks, and the model between them, may work in place
    return tokens


def store_stream(ctx: BlockContext, tokens: torch.Tensor, name: str) -> torch.Tensor:
    """End it on a dense step: keep what its blocks have added to the stream, [B, N, D], and hand the stream on.

    Raises:
        PlanError: The span was not entered in this call.
    """
    store_feature(ctx, tokens - _stream(ctx, name), name)
    return tokens


def forecast_stream(ctx: BlockContext, name: str) -> torch.Tensor:
    """End it in a stage that forecasts: the stream where it began, and what its blocks would add, [B, N, D].

    What the model itself adds between the blocks (ControlNet) is part of both, so it is not counted twice.

    Raises:
        PlanError: The span was not entered in this call.
    """
    state = ctx.call.state
    return _stream(ctx, name) + state.features[(ctx.block, name)].forecast(state.slope, state.now)


def _stream(ctx: BlockContext, name: str) -> torch.Tensor:
    span = ctx.spans.pop(name, None)
    if not isinstance(span, OpenStream):
        raise _not_begun(ctx, name)
    return span.tokens


def _not_begun(ctx: BlockContext, name: str) -> PlanError:
    return PlanError(
        f"block {ctx.block} is inside span {name!r}, but the block that begins it has not run in this call "
        "(skip_layers, or a cache that leaves blocks out?)"
    )
