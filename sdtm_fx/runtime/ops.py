"""The operations that passes insert into block graphs.

Each is a plain function of tensors and a `BlockContext`, so that a graph prints as readable Python and
torch.compile sees through it.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch.nn import functional as F

from sdtm_fx.attention_score.heads import AttentionHeads
from sdtm_fx.base_plan import Plan
from sdtm_fx.errors import PlanError
from sdtm_fx.grids import show_grid, tokens_on
from sdtm_fx.hashing import combine
from sdtm_fx.methods.base import TokenView
from sdtm_fx.runtime.call import BlockContext, OpenSpan
from sdtm_fx.runtime.feature import Feature
from sdtm_fx.runtime.guidance import pooled


def plan_tokens(
    ctx: BlockContext,
    metric: torch.Tensor,
    attention: torch.Tensor | None = None,
    heads: AttentionHeads | None = None,
) -> Plan:
    """Make the merge plan of a block, or take the one that it shares.

    Args:
        ctx: The block in the current call.
        metric: Tokens that similarity is computed from, [B, N, D].
        attention: Attention that each token received, [B, N], for methods that need it.
        heads: Queries and keys of the tokens, for methods that need them.

    Raises:
        PlanError: The tokens are not those of the grid, or the batch does not split into CFG halves.
    """
    call, group = ctx.call, ctx.group
    planned = ctx.planned.get(group)
    if planned is not None:
        return planned.reduced_by(ctx.reduce)  # type: ignore[attr-defined]
    plan = _kept_plan(ctx)
    advances = call.advance_ages and not call.one_age_counter
    if plan is None:
        view = _view(ctx, metric, attention, heads)
        former = None if call.phase.fresh_destinations else _plan_of_an_earlier_step(ctx)
        plan = (
            call.method.plan(view, ctx.remove)  # type: ignore[union-attr]
            if former is None
            else call.method.replan(view, ctx.remove, former)  # type: ignore[union-attr]
        )
        if call.threshold is not None:
            call.state.above[group] = call.method.count_above(view, call.threshold).amin()  # type: ignore[union-attr]
        if call.keep_plans:
            call.state.keep_plan(group, plan)
        advances = advances or call.one_age_counter
    # A stage that does not read ages leaves them alone, whether an earlier generation has made them or not.
    ages = call.state.ages.get(_age_key(ctx)) if call.reads("ages") else None
    if ages is not None and advances:
        ages.copy_(plan.next_ages(ages))
    if not call.share_batch and call.halves > 1:
        plan = plan.repeat(call.halves)
    plan = plan.prepared(metric.dtype)
    ctx.planned[group] = plan
    return plan.reduced_by(ctx.reduce)


def _kept_plan(ctx: BlockContext) -> Plan | None:
    """The plan of an earlier step, where this step reuses it whole."""
    return None if ctx.call.phase.fresh_plan else _plan_of_an_earlier_step(ctx)


def _plan_of_an_earlier_step(ctx: BlockContext) -> Plan | None:
    """The plan that was kept, where it removes as much as this step."""
    plan = ctx.call.state.plans.get(ctx.group)
    return None if plan is None or plan.removed != ctx.remove else plan


def _age_key(ctx: BlockContext) -> int:
    return 0 if ctx.call.one_age_counter else ctx.group


def measure_tokens(ctx: BlockContext, tokens: torch.Tensor, metric: torch.Tensor) -> torch.Tensor:
    """On a dense step of SDTM*, count what could be merged, and hand the tokens on unchanged.

    Args:
        ctx: The block in the current call.
        tokens: What reaches the site, [B, L, D].
        metric: What image tokens are compared by, [B, N, D].
    """
    call = ctx.call
    if ctx.group not in ctx.planned:
        view = _view(ctx, metric, None, None)
        above = call.method.count_above(view, call.threshold)  # type: ignore[union-attr, arg-type]
        call.state.above[ctx.group] = ctx.planned[ctx.group] = above.amin()
    return tokens


def _view(
    ctx: BlockContext,
    metric: torch.Tensor,
    attention: torch.Tensor | None,
    heads: AttentionHeads | None,
) -> TokenView:
    call = ctx.call
    grid, tokens = ctx.grid, tokens_on(ctx.grid)
    if metric.shape[1] != tokens:
        raise PlanError(
            f"block {ctx.block} has {metric.shape[1]} image tokens, the grid is {show_grid(grid)} = {tokens}; "
            "check `tokens.grid`, and the sites' `prefix`, `suffix` and `downsample`, in the recipe"
        )
    metric = shared(metric, call.share_batch, call.halves)
    if attention is not None:
        attention = shared(attention, call.share_batch, call.halves)
    if heads is not None:
        heads = heads.shared(call.share_batch, call.halves)
    ages = None
    if call.reads("ages"):
        key = _age_key(ctx)
        if key not in call.state.ages:
            call.state.ages[key] = torch.zeros(metric.shape[:2], dtype=torch.int32, device=metric.device)
        ages = call.state.ages[key]
    importance = None
    if call.reads("importance") and call.state.importance is not None:
        own = pooled(call.state.importance, call.grid, grid)
        importance = shared(own, call.share_batch, call.halves)
    return TokenView(metric, grid, ages, attention, draw_salt(ctx), importance, heads)


def draw_salt(ctx: BlockContext) -> int | torch.Tensor:
    """What the draws of a block start from."""
    if ctx.call.salt is None:
        return 0
    return combine(ctx.call.salt, ctx.group if ctx.draw is None else ctx.draw)


def shared(values: torch.Tensor, whole_batch: bool, halves: int) -> torch.Tensor:
    """Average over what shares a plan: [B, ...] to [1, ...] or [B / halves, ...].

    Raises:
        PlanError: The batch does not split into the halves.
    """
    if whole_batch:
        return values.mean(0, keepdim=True)
    if halves == 1:
        return values
    if values.shape[0] % halves:
        raise PlanError(
            f"a batch of {values.shape[0]} does not split into {halves} CFG halves that share a plan"
        )
    return values.unflatten(0, (halves, -1)).mean(0)


def before_image(ctx: BlockContext, prefix: int) -> int:
    """How many tokens stand in front of those that may be merged: text, and protected frames."""
    return prefix + ctx.before


def behind_image(ctx: BlockContext, suffix: int) -> int:
    """How many tokens follow those that may be merged: of reference images, and text."""
    return ctx.behind + suffix


def remaining(ctx: BlockContext, tokens: torch.Tensor, known: int, span: str | None = None) -> int:
    """How many tokens stand on the other side of the image, from the length of the sequence.

    Args:
        ctx: The block in the current call.
        tokens: The sequence, [B, L, D].
        known: Tokens on the side that is known.
        span: Id of the span whose slots the image tokens are, where the block runs on such.

    Raises:
        PlanError: The sequence is too short for its image tokens.
    """
    image = tokens_on(ctx.grid)
    if span is not None:
        opened = ctx.spans[span]
        assert isinstance(opened, OpenSpan), "graphs ask for slots of spans that merge alone"
        image = opened.plan.kept
    left = tokens.shape[1] - image - known
    if left < 0:
        raise PlanError(
            f"block {ctx.block} runs on {tokens.shape[1]} tokens; {image} image tokens of the grid "
            f"{show_grid(ctx.grid)} beside {known} others need {image + known} (check `tokens.grid` in the recipe)"
        )
    return left


def place_plan(plan: Plan, before: int, behind: int) -> Plan:
    """The plan of a sequence in which tokens stand in front of and behind its own that stay as they are."""
    return plan.placed(before, behind)


def image_tokens(tokens: torch.Tensor, before: int, behind: int) -> torch.Tensor:
    """[B, L, D] to [B, N, D]: the sequence without what stands in front of the image and behind it."""
    return tokens[:, before : tokens.shape[1] - behind]


def merge_tokens(plan: Plan, tokens: torch.Tensor) -> torch.Tensor:
    """[B, N, D] to [B, M, D]: one row per slot, the mean of its tokens, weighted where the plan says so."""
    return plan.merge(tokens)


def keys_of(plan: Plan, tokens: torch.Tensor) -> torch.Tensor:
    """[B, L, D], unchanged: says which plan merges the keys of a site that takes these tokens."""
    return tokens


def unmerge_tokens(plan: Plan, tokens: torch.Tensor) -> torch.Tensor:
    """[B, M, D] to [B, N, D]: every token gets the row of its slot, or what the plan mixes of several."""
    return plan.unmerge(tokens)


def linear_part(
    linear: torch.nn.Linear, tokens: torch.Tensor, before: Sequence[torch.Tensor], with_bias: bool
) -> torch.Tensor:
    """Apply the columns of a linear layer's weight that belong to one part of a concatenated input.

    Args:
        linear: The layer.
        tokens: The part, [B, N, D].
        before: The parts in front of it; only their widths matter.
        with_bias: Whether this part brings the bias along.

    Raises:
        GuardFailed: A LoRA has come in since the block was traced.
    """
    start = sum(part.shape[-1] for part in before)
    weight = linear.weight[:, start : start + tokens.shape[-1]]
    return F.linear(tokens, weight, linear.bias if with_bias else None)


def store_feature(ctx: BlockContext, value: torch.Tensor, site: str) -> torch.Tensor:
    """On a refresh step, keep a site's dense output for later forecasts; returns it unchanged."""
    call, key = ctx.call, (ctx.block, site)
    features, now = call.state.features, call.state.now if call.dates_tokens else None
    if key in features:
        features[key].record(value, now)
    else:
        features[key] = Feature.of(value, call.forecast_order, now)
    return value


def forecast_feature(ctx: BlockContext, site: str) -> torch.Tensor:
    """Forecast a site's output from what it has stored: a copy (order 0) or a straight line (order 1)."""
    feature = ctx.call.state.features[(ctx.block, site)]
    forecast = feature.forecast(ctx.call.state.slope, ctx.call.state.now)
    return forecast.clone() if feature.older is None else forecast  # the block may go on in place


def blend_forecast(ctx: BlockContext, plan: Plan, tokens: torch.Tensor, site: str) -> torch.Tensor:
    """Unmerge, and let merged positions take only `forecast_weight` of the new value.

    The rest comes from the forecast; tokens that stayed on their own keep their new value, which is stored where the
    recipe says so (``reuse.update: tokens``).
    """
    call, state = ctx.call, ctx.call.state
    feature = state.features[(ctx.block, site)]
    merged, new = plan.merged_mask, plan.unmerge(tokens)
    share = merged.unsqueeze(-1).to(tokens.dtype) * (1.0 - call.forecast_weight)
    blended = torch.lerp(new, feature.forecast(state.slope, state.now), share)
    if call.updates_tokens:
        feature.update(new, ~merged, state.now)
    return blended


def prompt_mask(ctx: BlockContext, tokens: torch.Tensor, start: int, image: int, length: int) -> torch.Tensor:
    """Additive attention mask [1, 1, 1, length]: the prompt's log-weight on every key that is text.

    Image tokens that are protected, and those of references, are none; they stand around the others.
    """
    position = torch.arange(length, device=tokens.device)
    is_text = (position < start - ctx.before) | (position >= start + image + ctx.behind)
    assert ctx.call.prompt_bias is not None, "this graph is only made for recipes with a prompt weight"
    return (is_text * ctx.call.prompt_bias).to(tokens.dtype).reshape(1, 1, 1, length)
