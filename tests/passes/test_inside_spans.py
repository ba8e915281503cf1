"""Sites inside of a span, block by block: what the graph calls, and the numbers against what is written out here."""

from __future__ import annotations

import re
from typing import Any

import pytest
import torch
from torch import nn
from torch.nn import functional as F

import sdtm_fx
from sdtm_fx.errors import PlanError
from sdtm_fx.plan import MergePlan
from sdtm_fx.rewriting.spans import SpanPlace
from sdtm_fx.runtime import key_ops, ops, rotary_ops, span_ops, stack_ops
from sdtm_fx.runtime.call import OpenSpan
from sdtm_fx.runtime.inside import Inside
from sdtm_fx.stacking import composed
from tests.passes.blocks import GRID, TEXT, TOKENS, GatedBlock, RotaryBlock, condition, image, tables, text
from tests.passes.working import ATTN, FF, Calls, Worked, close, recipe, work_on

X, T, C = image(), text(), condition()
TOME = {"name": "tome", "window": [1, 2]}
INSIDE = {"sites": ["attn", "ff"], "method": TOME, "ratio": 0.4}
SPAN = {"id": "body", "first": 0, "last": 2}
FIRST, MIDDLE, LAST = (SpanPlace(0, n == 0, n == 2, 0, 2) for n in range(3))
REMOVE, FURTHER = 12, 5  # 24 tokens, 12 slots, 7 of them in the end


def worked(
    place: SpanPlace = MIDDLE,
    sites: list[dict[str, Any]] | None = None,
    span: dict[str, Any] | None = None,
    inside: dict[str, Any] | None = INSIDE,
    **more: Any,
) -> Worked:
    rules = recipe(sites or [ATTN, FF], ["body"], spans=[{**SPAN, **(span or {})}], inside=inside, **more)
    return work_on(GatedBlock(), (X, C), rules, span=place)


def outer_plan(rows: int = 2) -> MergePlan:
    plan = sdtm_fx.plan_merge("local_match", X[:rows], grid=GRID, remove=REMOVE, target="first")
    assert isinstance(plan, MergePlan)
    return plan


def run_middle(w: Worked, *args: Any, rows: int = 2) -> tuple[Any, MergePlan, MergePlan]:
    """Run a block in the middle of a span; returns its output, the span's plan, and its own for tokens."""
    outer, planned = outer_plan(rows), {}
    call = Calls(w.work.recipe).make(remove=REMOVE, inside=inner_of(w), share_batch=rows == 1)
    result = w.run(*args, call=call, planned=planned, spans={"body": OpenSpan(outer, None, 0)})
    inner = planned[0, 0]
    assert inner.kept == TOKENS - REMOVE - FURTHER
    return result, outer, composed(outer, inner)


def inner_of(w: Worked) -> Inside:
    spec = w.work.recipe.stages[0].inside
    assert spec is not None
    return Inside(spec.method, FURTHER, spec.reduce)


def fewer(slots: torch.Tensor, outer: MergePlan, both: MergePlan) -> torch.Tensor:
    """The mean over the tokens of each slot in the end, of what was copied to all tokens first."""
    return both.merge(outer.unmerge(slots))


def back(y: torch.Tensor, outer: MergePlan, both: MergePlan) -> torch.Tensor:
    """From slots in the end to those of the span: each takes what the token has that represents it."""
    rows = outer.positions.expand(y.shape[0], -1)[..., None].expand(-1, -1, y.shape[-1])
    return both.unmerge(y).gather(1, rows)


def test_the_middle_of_a_span_plans_once_and_merges_at_each_site() -> None:
    w = worked()
    counts = {
        function.__name__: w.count(function)
        for function in (
            stack_ops.plan_slots, ops.plan_tokens, ops.merge_tokens, ops.unmerge_tokens,
            span_ops.inside_span, span_ops.enter_span, span_ops.leave_span,
        )
    }  # fmt: skip
    assert counts == {
        "plan_slots": 1, "plan_tokens": 0, "merge_tokens": 2, "unmerge_tokens": 2,
        "inside_span": 1, "enter_span": 0, "leave_span": 0,
    }  # fmt: skip
    assert w.applied["insert_merges"] == 2
    assert w.applied["share_plans"] == 1
    assert w.inputs_of("attn") == w.inputs_of("ff") == (ops.merge_tokens,)


def test_where_a_span_begins_and_ends_there_are_two_plans() -> None:
    first, last = worked(FIRST), worked(LAST)
    assert [first.count(f) for f in (ops.plan_tokens, stack_ops.plan_slots, span_ops.enter_span)] == [1, 1, 1]
    assert [last.count(f) for f in (ops.plan_tokens, stack_ops.plan_slots, span_ops.leave_span)] == [0, 1, 1]
    order = [n.target for n in first.work.graph.nodes]
    assert order.index(span_ops.enter_span) < order.index(stack_ops.plan_slots)


@pytest.mark.parametrize(
    ("place", "span", "inside"),
    [
        (FIRST, {"enter": "end"}, INSIDE),
        (MIDDLE, {}, None),
        (MIDDLE, {}, {**INSIDE, "ratio": 0.0}),
    ],
    ids=["the block that merges at its end", "a span alone", "ratio 0"],
)
def test_near_misses_stay_a_span_alone(place: SpanPlace, span: Any, inside: Any) -> None:
    w, alone = worked(place, span=span, inside=inside), worked(place, span=span, inside=None)
    assert w.count(stack_ops.plan_slots) == w.count(ops.merge_tokens) == w.count(ops.unmerge_tokens) == 0
    assert str(w.work.graph) == str(alone.work.graph)


@pytest.mark.parametrize("rows", [1, 2], ids=["a plan for the batch", "a plan per sample"])
def test_slots_count_for_their_tokens(rows: int) -> None:
    w, slots = worked(), outer_plan(2).merge(X)
    got, outer, both = run_middle(w, slots, C, rows=rows)
    block = w.block
    with torch.no_grad():
        normed, gate = block.norm1(slots, C)
        stream = slots + gate * back(block.attn(fewer(normed, outer, both)), outer, both)
        normed, gate = block.norm2(stream, C)
        stream = stream + gate * back(block.ff(fewer(normed, outer, both)), outer, both)
    close(got, stream)


def test_pruned_slots_hold_one_value() -> None:
    w, slots = worked(inside={**INSIDE, "sites": ["ff"], "reduce": "prune"}), outer_plan().merge(X)
    got, outer, both = run_middle(w, slots, C)
    block = w.block
    with torch.no_grad():
        normed, gate = block.norm1(slots, C)
        stream = slots + gate * block.attn(normed)
        normed, gate = block.norm2(stream, C)
        pruned = both.reduced_by("prune").merge(outer.unmerge(normed))
        close(got, stream + gate * back(block.ff(pruned), outer, both))


@pytest.mark.parametrize("sites", [["attn", "ff"], ["ff"]], ids=["merged further", "slots of the span alone"])
def test_proportional_attention_counts_all_tokens_of_a_slot(sites: list[str]) -> None:
    w = worked(inside={**INSIDE, "sites": sites}, plan={"proportional": True})
    assert (w.applied["weigh_slots"], w.count("attn")) == (1, 0)
    assert w.count(stack_ops.span_plan) == ("attn" not in sites)
    slots = outer_plan().merge(X)
    got, outer, both = run_middle(w, slots, C)
    block, plan = w.block, both if "attn" in sites else outer
    with torch.no_grad():
        normed, gate = block.norm1(slots, C)
        queries = fewer(normed, outer, both) if "attn" in sites else normed
        # Direct: every key as many times as it has tokens.
        attended = block.attn(queries, context=plan.unmerge(queries))
        stream = slots + gate * (back(attended, outer, both) if "attn" in sites else attended)
        normed, gate = block.norm2(stream, C)
        close(got, stream + gate * back(block.ff(fewer(normed, outer, both)), outer, both))
        plain, _, _ = run_middle(_unweighed(w, sites), slots, C)
    assert (plain - got).abs().max() > 1e-4


def _unweighed(w: Worked, sites: list[str]) -> Worked:
    rules = recipe([ATTN, FF], ["body"], spans=[SPAN], inside={**INSIDE, "sites": sites})
    return work_on(w.block, (X, C), rules, span=MIDDLE)


def test_keys_alone_are_merged_by_their_tokens() -> None:
    sites = [ATTN | {"merge": "keys"}, FF]
    w = worked(sites=sites, inside={**INSIDE, "sites": ["attn"]})
    assert (w.count(key_ops.reduce_keys), w.count(ops.merge_tokens), w.applied["reduce_keys"]) == (0, 0, 1)
    slots = outer_plan().merge(X)
    got, outer, both = run_middle(w, slots, C)
    block = w.block
    with torch.no_grad():
        normed, gate = block.norm1(slots, C)
        query, key, value = block.attn.qkv(normed).chunk(3, dim=-1)
        rows = [query, fewer(key, outer, both), fewer(value, outer, both)]
        heads = [t.unflatten(-1, (2, -1)).transpose(1, 2) for t in rows]
        attended = block.attn.out(F.scaled_dot_product_attention(*heads).transpose(1, 2).flatten(2))
        stream = slots + gate * attended
        normed, gate = block.norm2(stream, C)
        close(got, stream + gate * block.ff(normed))


class RotaryImage(RotaryBlock):
    """One that returns image tokens alone, as blocks of a span do."""

    def forward(self, hidden_states: Any, encoder_hidden_states: Any, temb: Any, rotary: Any) -> torch.Tensor:
        return super().forward(hidden_states, encoder_hidden_states, temb, rotary)[
            :, encoder_hidden_states.shape[1] :
        ]


def test_position_tables_follow_both_plans() -> None:
    site = ATTN | {"prefix": "encoder_hidden_states", "rotary": "rotary"}
    rules = recipe(
        [site], ["body"], spans=[{**SPAN, "rotary": "rotary"}], inside={**INSIDE, "sites": ["attn"]},
        plan={"share": ["batch"]},
    )  # fmt: skip
    block: nn.Module = RotaryImage()
    w = work_on(block, (X, T, C, tables()), rules, span=MIDDLE)
    assert w.count(rotary_ops.gather_rotary) == w.count(span_ops.span_rotary) == 2
    slots = outer_plan(1).merge(X)
    got, outer, both = run_middle(w, slots, T, C, tables(), rows=1)
    with torch.no_grad():
        stream = torch.cat([T, slots], dim=1)
        normed, gate = block.norm(stream, C)
        merged = torch.cat([normed[:, :TEXT], fewer(normed[:, TEXT:], outer, both)], dim=1)
        kept = torch.cat([torch.arange(TEXT), both.positions[0] + TEXT])
        attended = block.attn(merged, rotary=tuple(t[kept] for t in tables()))[:, TEXT:]
        close(got, slots + gate * back(attended, outer, both))


def test_a_metric_of_full_length_is_no_metric_of_slots() -> None:
    site = {**FF, "metric": "other"}

    class Two(GatedBlock):
        def forward(self, hidden_states: Any, temb: Any, other: Any) -> torch.Tensor:
            return super().forward(hidden_states + 0 * other.mean(), temb)

    rules = recipe([site], ["body"], spans=[SPAN], inside={**INSIDE, "sites": ["ff"]})
    w = work_on(Two(), (X, C, X), rules, span=MIDDLE)
    message = "block 0 is inside span 'body', which has 12 slots, and compares 24 tokens there; a `metric`"
    with pytest.raises(PlanError, match=re.escape(message)):
        run_middle(w, outer_plan().merge(X), C, X)
