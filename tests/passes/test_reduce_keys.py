"""Attention with fewer image keys and values: what the graph becomes, and that it is what the formula says."""

from __future__ import annotations

import re
from typing import Any

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from sdtm_fx.errors import SiteError
from sdtm_fx.methods import METHODS, ToDo, TokenView
from sdtm_fx.plan import MergePlan
from sdtm_fx.rewriting.attention import carries
from sdtm_fx.runtime import key_ops, ops
from sdtm_fx.runtime.key_ops import reduce_keys
from tests.passes.blocks import (
    GRID,
    TEXT,
    TOKENS,
    Attention,
    CrossBlock,
    DualBlock,
    GatedBlock,
    JointAttention,
    ParallelBlock,
    RotaryBlock,
    condition,
    image,
    tables,
    text,
)
from tests.passes.test_instrument_attention import Double, FeedForwardFirst
from tests.passes.working import (
    ATTN,
    DUAL,
    FF,
    PARALLEL,
    REFRESH,
    REUSE,
    Calls,
    close,
    recipe,
    up_to,
    work_on,
)

X, T, C = image(), text(), condition()
KEYS = ATTN | {"merge": "keys"}
TODO = {"name": "todo"}
UNIFORM = {"name": "uniform"}
PREFIX = {"prefix": "encoder_hidden_states"}
FULL = TOKENS // 4 * 3
BATCH = {"plan": {"share": ["batch"]}}


def heads_of(rows: torch.Tensor) -> list[torch.Tensor]:
    return [t.unflatten(-1, (2, -1)).transpose(1, 2) for t in rows.chunk(3, dim=-1)]


def attend(query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, plan: MergePlan, lead: int) -> Any:
    """Attention whose keys and values from `lead` on are merged by the plan, written out head by head."""
    rows = [
        torch.stack(
            [torch.cat([r[:, h, :lead], plan.merge(r[:, h, lead:])], dim=1) for h in range(r.shape[1])], dim=1
        )
        for r in (key, value)
    ]
    return F.scaled_dot_product_attention(query, *rows).transpose(1, 2).flatten(2)


# -- the graph -------------------------------------------------------------------------------------


def test_the_module_gives_way_to_its_graph_and_nothing_is_unmerged() -> None:
    rules = recipe([KEYS, FF], merged=["attn"], method=TODO)
    marked = work_on(GatedBlock(), (X, C), rules, passes=up_to("insert_merges"))
    assert (marked.count(ops.keys_of), marked.count("attn")) == (1, 1)
    assert marked.inputs_of("attn") == (ops.keys_of,)
    worked = work_on(GatedBlock(), (X, C), rules)
    assert (worked.applied["reduce_keys"], worked.applied["call_opened"]) == (1, 1)
    assert worked.applied["gather_rotary"] == worked.applied["sink_unmerge"] == 0
    for function in (ops.keys_of, ops.merge_tokens, ops.unmerge_tokens, "attn"):
        assert worked.count(function) == 0, function
    assert worked.count(ops.plan_tokens) == worked.count("ff") == 1
    inner = worked.work.opened["attn"].attention.graph
    assert sum(n.target is key_ops.reduce_keys for n in inner.nodes) == 2
    assert sum(n.target is F.scaled_dot_product_attention for n in inner.nodes) == 1


def test_sites_of_one_block_share_the_plan() -> None:
    rules = recipe([KEYS | {"output": 0}, KEYS | {"id": "attn2", "match": "attn2"}, FF], method=UNIFORM)
    worked = work_on(DualBlock(), (X, T, C), rules)
    assert (worked.applied["reduce_keys"], worked.applied["share_plans"]) == (2, 2)
    assert (worked.count(ops.plan_tokens), worked.count(ops.merge_tokens)) == (
        1,
        1,
    )  # the one merge is for ff


def test_a_site_of_whole_tokens_is_left_to_others() -> None:
    worked = work_on(DualBlock(), (X, T, C), recipe([KEYS | {"output": 0}, *DUAL[1:]]))
    assert worked.applied["reduce_keys"] == 1
    assert worked.inputs_of("attn2") == (ops.merge_tokens,)


def test_dense_steps_store_and_reduce_nothing_there() -> None:
    rules = recipe([KEYS, FF], reuse=REUSE)
    worked = work_on(GatedBlock(), (X, C), rules, variant=REFRESH)
    assert (worked.applied["reduce_keys"], worked.applied["reuse_features"]) == (0, 1)
    assert (worked.count("attn"), worked.count(ops.store_feature)) == (1, 1)
    merged = work_on(GatedBlock(), (X, C), rules)
    assert merged.count(ops.blend_forecast) == 1


# -- what it computes ------------------------------------------------------------------------------


ELSEWHERE = ("skip", "idm", "importance", "at_edm", "toma", "token_cache")
"""Methods that make no plan from the tokens alone, `toma`, whose slots are no tokens, and `token_cache`, for which
keys are stored nowhere."""


@pytest.mark.parametrize("method", [m for m in METHODS if m not in ELSEWHERE])
@pytest.mark.parametrize("reduce", [None, "mean", "prune"])
def test_any_method_can_give_the_plan(method: str, reduce: str | None) -> None:
    if method == "tofu":
        reduce = reduce or "mean"  # of its own it takes lengths that span the heads
    rules = recipe([KEYS, FF], merged=["attn"], method={"name": method}, reduce=reduce)
    block, planned = GatedBlock(), {}
    worked = work_on(block, (X, C), rules)
    got = worked.run(X, C, call=Calls(rules).make(remove=FULL), planned=planned)
    plan: MergePlan = planned[0].reduced_by(reduce)  # type: ignore[attr-defined]
    own = {"todo": "prune", "sito": "prune"}.get(method, "mean")
    assert plan.reduce == (reduce or own)
    with torch.no_grad():
        normed, gate = block.norm1(X, C)
        stream = X + gate * block.attn.out(attend(*heads_of(block.attn.qkv(normed)), plan, 0))
        normed, gate = block.norm2(stream, C)
        close(got, stream + gate * block.ff(normed))


def test_text_that_is_joined_inside_stays() -> None:
    rules = recipe([KEYS | {"output": 0}, FF], merged=["attn"], method=TODO)
    block, planned = DualBlock(), {}
    image_out, text_out = work_on(block, (X, T, C), rules).run(
        X, T, C, call=Calls(rules).make(remove=FULL), planned=planned
    )
    with torch.no_grad():
        normed, gate = block.norm1(X, C)
        rows = heads_of(block.attn.qkv(torch.cat([T, normed], dim=1)))
        joint = block.attn.out(attend(*rows, planned[0], TEXT))  # type: ignore[arg-type]
        stream = X + gate * joint[:, TEXT:] + gate * block.attn2(normed)
        normed, gate = block.norm2(stream, C)
        close(image_out, stream + gate * block.ff(normed))
        close(text_out, T + joint[:, :TEXT])


def test_a_prefix_stays() -> None:
    rules = recipe([KEYS | PREFIX, PARALLEL[1]], merged=["attn"], method=TODO)
    block, planned = ParallelBlock(), {}
    got = work_on(block, (X, T, C), rules).run(X, T, C, call=Calls(rules).make(remove=FULL), planned=planned)
    with torch.no_grad():
        stream = torch.cat([T, X], dim=1)
        normed, gate = block.norm(stream, C)
        attended = block.attn.out(attend(*heads_of(block.attn.qkv(normed)), planned[0], TEXT))  # type: ignore[arg-type]
        mlp = block.act_mlp(block.proj_mlp(normed))
        close(torch.cat(got, dim=1), stream + gate * block.proj_out(torch.cat([attended, mlp], dim=2)))


def test_keys_are_merged_behind_their_rotation() -> None:
    # A plan per sample: tables are not gathered, so nothing asks for one plan for the batch.
    rules = recipe([KEYS | PREFIX | {"rotary": "rotary"}], method={"name": "local_match"})
    block, planned, args = RotaryBlock(), {}, (X, T, C, tables())
    worked = work_on(block, args, rules)
    assert worked.applied["gather_rotary"] == 0
    got = worked.run(*args, call=Calls(rules).make(remove=12), planned=planned)
    with torch.no_grad():
        stream = torch.cat([T, X], dim=1)
        normed, gate = block.norm(stream, C)
        query, key, value = block.attn.qkv(normed).chunk(3, dim=-1)
        cos, sin = tables()
        rows = [t * cos + t.flip(-1) * sin for t in (query, key)]
        heads = [t.unflatten(-1, (2, -1)).transpose(1, 2) for t in (*rows, value)]
        close(got, stream + gate * block.attn.out(attend(*heads, planned[0], TEXT)))  # type: ignore[arg-type]


class Folded(Attention):
    """Heads in the batch, [B * H, L, d]."""

    def forward(self, hidden_states: torch.Tensor) -> torch.Tensor:  # type: ignore[override]
        batch = hidden_states.shape[0]
        folded = [t.flatten(0, 1) for t in heads_of(self.qkv(hidden_states))]
        attended = F.scaled_dot_product_attention(*folded).unflatten(0, (batch, -1))
        return self.out(attended.transpose(1, 2).flatten(2))


@pytest.mark.parametrize("more", [{}, BATCH, {"plan": {"proportional": True}}], ids=str)
def test_heads_may_be_folded_into_the_batch(more: dict[str, Any]) -> None:
    rules = recipe([KEYS], method={"name": "local_match"}, **more)
    plain, folded = GatedBlock(), GatedBlock()
    folded.attn = Folded()
    folded.load_state_dict(plain.state_dict())
    outputs = [
        work_on(block, (X, C), rules).run(X, C, call=Calls(rules).make(remove=12))
        for block in (plain, folded)
    ]
    close(*outputs)


@pytest.mark.parametrize("axis", [1, 2])
@pytest.mark.parametrize("span", [(0, 24), (3, 24), (0, 20), (2, 20)])
def test_the_image_may_stand_anywhere(axis: int, span: tuple[int, int]) -> None:
    start, length = span
    grid = (4, length // 4)
    plan = ToDo().plan(TokenView(torch.randn(2, length, 4), grid), ToDo().capacity(grid))
    rows = torch.randn(2, 27, 27, 5).narrow(3 - axis, 0, 2)
    got = reduce_keys(plan, rows, start, length, axis).movedim(axis, 1)
    rows = rows.movedim(axis, 1)
    assert torch.equal(got[:, :start], rows[:, :start])
    assert torch.equal(got[:, start + plan.kept :], rows[:, start + length :])
    assert torch.equal(got[:, start : start + plan.kept], rows[:, start + plan.positions[0]])


CASES: list[tuple[nn.Module, tuple[Any, ...], Any]] = [
    (GatedBlock(), (X, C), recipe([KEYS, FF])),
    (DualBlock(), (X, T, C), recipe([KEYS | {"output": 0}, KEYS | {"id": "attn2", "match": "attn2"}, FF])),
    (ParallelBlock(), (X, T, C), recipe([KEYS | PREFIX, PARALLEL[1]], merged=["attn"])),
    (RotaryBlock(), (X, T, C, tables()), recipe([KEYS | PREFIX])),
]


@pytest.mark.parametrize(("block", "args", "rules"), CASES, ids=["gated", "dual", "parallel", "rotary"])
def test_a_plan_that_removes_nothing_changes_nothing(
    block: nn.Module, args: tuple[Any, ...], rules: Any
) -> None:
    with torch.no_grad():
        expected = block(*args)
    got = work_on(block, args, rules).run(*args, call=Calls(rules).make(remove=0))
    torch.testing.assert_close(got, expected, rtol=0, atol=0)


# -- together with others --------------------------------------------------------------------------


def test_the_prompt_is_weighed_among_fewer_keys() -> None:
    rules = recipe([KEYS | {"output": 0}, FF], merged=["attn"], method=TODO, prompt={"start": 2.0})
    block, planned = DualBlock(), {}
    worked = work_on(block, (X, T, C), rules)
    assert (worked.applied["reduce_keys"], worked.applied["instrument_attention"]) == (1, 1)
    assert worked.applied["call_opened"] == 1  # opened once by two passes
    call = Calls(rules).make(remove=FULL, prompt_bias=torch.tensor(0.7))
    got = worked.run(X, T, C, call=call, planned=planned)
    with torch.no_grad():
        normed = block.norm1(X, C)[0]
        query, key, value = heads_of(block.attn.qkv(torch.cat([T, normed], dim=1)))
        kept = torch.cat([torch.arange(TEXT), planned[0].positions[0] + TEXT])  # type: ignore[attr-defined]
        mask = torch.zeros(len(kept))
        mask[:TEXT] = 0.7
        joint = F.scaled_dot_product_attention(
            query, key[:, :, kept], value[:, :, kept], attn_mask=mask[None]
        )
        close(got[1], T + block.attn.out(joint.transpose(1, 2).flatten(2))[:, :TEXT])


IDM = {"name": "idm", "probe_queries": None}


def test_scores_are_read_in_one_attention_and_keys_reduced_in_another() -> None:
    rules = recipe(
        [DUAL[0], KEYS | {"id": "attn2", "match": "attn2"}, FF], merged=["attn2", "ff"], method=IDM
    )
    block = DualBlock()
    worked = work_on(block, (X, T, C), rules)
    assert (worked.applied["reduce_keys"], worked.applied["instrument_attention"]) == (1, 1)
    (plan,) = worked.work.calls(ops.plan_tokens)
    assert "attention" in plan.kwargs
    worked.run(X, T, C, call=Calls(rules).make(remove=10))
    with torch.no_grad():
        close(worked.run(X, T, C, call=Calls(rules).make(remove=0)), block(X, T, C))


class Causal(Attention):
    def forward(self, hidden_states: torch.Tensor) -> torch.Tensor:  # type: ignore[override]
        heads = heads_of(self.qkv(hidden_states))
        return self.out(F.scaled_dot_product_attention(*heads, is_causal=True).transpose(1, 2).flatten(2))


@pytest.mark.parametrize(
    ("attention", "message"),
    [
        (Causal(), "attention is causal, which fewer keys do not combine with"),
        (Double(), "Double computes attention 2 times, expected once"),
    ],
)
def test_attention_whose_keys_cannot_be_reduced(attention: Attention, message: str) -> None:
    block = GatedBlock()
    block.attn = attention
    with pytest.raises(SiteError, match=re.escape(f"site 'attn': {message}")):
        work_on(block, (X, C), recipe([KEYS, FF]))


def test_keys_of_text_are_never_merged() -> None:
    sites = [KEYS | {"id": "cross", "match": "attn2"}, FF]
    message = (
        "site 'cross': its keys do not come from the image tokens (cross-attention: they are text), and text is "
        "never merged; accepted: `merge: tokens`, which merges the queries, or another site"
    )
    with pytest.raises(SiteError, match=re.escape(message)):
        work_on(CrossBlock(), (X, T, C), recipe(sites, method=TODO))


def test_scores_of_the_same_attention_are_an_error() -> None:
    with pytest.raises(
        SiteError, match="reads the block's own, dense attention; take site 'attn' out of stage"
    ):
        work_on(GatedBlock(), (X, C), recipe([KEYS, FF], method=IDM))


def test_reading_attention_behind_a_plan_is_still_an_error() -> None:
    with pytest.raises(SiteError, match="which is computed after the plan that reads attention"):
        work_on(FeedForwardFirst(), (X, C), recipe([ATTN, FF], merged=["ff"], method=IDM))


# -- which keys are image --------------------------------------------------------------------------


class ShapedByImage(JointAttention):
    """Text in front, brought into shape with the batch size of the image."""

    def forward(
        self, hidden_states: torch.Tensor, encoder_hidden_states: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor]:
        batch = hidden_states.shape[0]
        parts = [self.qkv(t).view(batch, -1, 3, 2, 4) for t in (encoder_hidden_states, hidden_states)]
        query, key, value = torch.cat(parts, dim=1).permute(2, 0, 3, 1, 4)
        joint = self.out(F.scaled_dot_product_attention(query, key, value).transpose(1, 2).flatten(2))
        length = encoder_hidden_states.shape[1]
        return joint[:, length:], joint[:, :length]


def test_a_shape_that_is_read_off_the_image_makes_text_no_image() -> None:
    rules = recipe([KEYS | {"output": 0}, FF], merged=["attn"], method=TODO)
    plain, shaped = DualBlock(), DualBlock()
    shaped.attn = ShapedByImage()
    shaped.load_state_dict(plain.state_dict())
    outputs = [
        work_on(block, (X, T, C), rules).run(X, T, C, call=Calls(rules).make(remove=FULL))
        for block in (plain, shaped)
    ]
    close(outputs[0][0], outputs[1][0])
    worked = work_on(shaped, (X, T, C), rules)
    opened = worked.work.opened["attn"].attention
    placeholders = [n for n in opened.graph.nodes if n.op == "placeholder"]
    text_leaf = next(n for n in placeholders if n.target == "encoder_hidden_states")
    assert carries(opened.key, opened.entry)
    assert carries(opened.key, text_leaf)
    assert not carries(opened.entry, text_leaf)


def test_the_grid_has_the_tokens_of_the_toy() -> None:
    assert GRID[0] * GRID[1] == TOKENS
    assert ToDo().capacity(GRID) == FULL
