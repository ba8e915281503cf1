"""Reading the attention that tokens receive, and weighing the prompt's keys."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from sdtm_fx.attention_score import AttentionHeads, received_attention
from sdtm_fx.errors import SiteError
from sdtm_fx.methods import IDM, AtEdm, TokenView
from sdtm_fx.passes import PASSES
from sdtm_fx.rewriting.attention import has_attention, open_attention
from sdtm_fx.rewriting.runner import run_passes
from sdtm_fx.runtime import ops
from sdtm_fx.runtime.call import Variant
from tests.capture.tracing import trace
from tests.passes.blocks import (
    GRID,
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
from tests.passes.working import (
    ATTN,
    DUAL,
    FF,
    PARALLEL,
    REFRESH,
    REUSE,
    Calls,
    capture_work,
    close,
    recipe,
    work_on,
)

X, T, C = image(), text(), condition()
IDM_ALL = {"name": "idm", "probe_queries": None, "age_weight": 0.0}
PROMPT = {"start": 2.0, "end": 1.0}
DENSE = Variant(stage=None)
TWO = math.log(2.0)


def heads_of(attention: Attention, tokens: torch.Tensor) -> list[torch.Tensor]:
    return [t.unflatten(-1, (2, -1)).transpose(1, 2) for t in attention.qkv(tokens).chunk(3, dim=-1)]


# -- reading ---------------------------------------------------------------------------------------


def test_the_plan_is_given_what_attention_was_received() -> None:
    rules = recipe([ATTN, FF], merged=["ff"], method=IDM_ALL)
    worked = work_on(GatedBlock(), (X, C), rules)
    assert worked.applied["instrument_attention"] == 1
    assert worked.count("attn") == 0  # its graph is called instead
    (plan,) = worked.work.calls(ops.plan_tokens)
    assert "attention" in plan.kwargs
    assert [n.target for n in worked.work.graph.nodes if n.op == "get_attr"] == ["attn"]


def test_the_tokens_that_are_attended_least_go() -> None:
    rules = recipe([ATTN, FF], merged=["ff"], method=IDM_ALL)
    block, planned = GatedBlock(), {}
    worked = work_on(block, (X, C), rules)
    worked.run(X, C, call=Calls(rules).make(remove=10), planned=planned)
    with torch.no_grad():
        normed, gate = block.norm1(X, C)
        query, key, _ = heads_of(block.attn, normed)
        received = received_attention(query, key, image=(0, TOKENS))
        metric = block.norm2(X + gate * block.attn(normed), C)[0]
    expected = IDM(probe_queries=None, age_weight=0.0).plan(TokenView(metric, GRID, attention=received), 10)
    assert torch.equal(planned[0].assign, expected.assign)  # type: ignore[attr-defined]


def test_text_keys_are_not_read_in_joint_attention() -> None:
    rules = recipe(DUAL, merged=["ff"], method=IDM_ALL)
    block, planned = DualBlock(), {}
    worked = work_on(block, (X, T, C), rules)
    assert worked.applied["instrument_attention"] == 1  # the block's first attention only
    assert (worked.count("attn"), worked.count("attn2")) == (0, 1)
    worked.run(X, T, C, call=Calls(rules).make(remove=10), planned=planned)
    with torch.no_grad():
        normed, gate = block.norm1(X, C)
        query, key, _ = heads_of(block.attn, torch.cat([T, normed], dim=1))
        received = received_attention(query, key, image=(T.shape[1], TOKENS))
        stream = X + gate * block.attn(normed, T)[0]
        metric = block.norm2(stream + gate * block.attn2(normed), C)[0]
    expected = IDM(probe_queries=None, age_weight=0.0).plan(TokenView(metric, GRID, attention=received), 10)
    assert torch.equal(planned[0].assign, expected.assign)  # type: ignore[attr-defined]


def test_in_a_parallel_block_attention_moves_in_front_of_the_plan() -> None:
    rules = recipe(list(reversed(PARALLEL)), merged=["mlp"], method=IDM_ALL)
    block = ParallelBlock()
    worked = work_on(block, (X, T, C), rules)
    names = [n.name for n in worked.work.graph.nodes]
    (plan,) = worked.work.calls(ops.plan_tokens)
    assert names.index(plan.kwargs["attention"].name) < names.index(plan.name)  # type: ignore[union-attr]
    with torch.no_grad():
        close(worked.run(X, T, C, call=Calls(rules).make(remove=0)), block(X, T, C))
    worked.run(X, T, C, call=Calls(rules).make(remove=10))


@pytest.mark.parametrize("probes", [None, 5])
def test_a_plan_that_removes_nothing_changes_nothing(probes: int | None) -> None:
    rules = recipe(DUAL, merged=["ff"], method=IDM_ALL | {"probe_queries": probes})
    block = DualBlock()
    worked = work_on(block, (X, T, C), rules)
    with torch.no_grad():
        torch.testing.assert_close(
            worked.run(X, T, C, call=Calls(rules).make(remove=0)), block(X, T, C), rtol=0, atol=0
        )


@pytest.mark.parametrize("method", [{"name": "ssm"}, {"name": "local_match"}])
def test_methods_that_read_no_attention_leave_it_alone(method: dict[str, Any]) -> None:
    worked = work_on(GatedBlock(), (X, C), recipe([ATTN, FF], merged=["ff"], method=method))
    assert worked.applied["instrument_attention"] == 0
    assert worked.count("attn") == 1


def test_dense_steps_read_no_attention() -> None:
    rules = recipe([ATTN, FF], merged=["ff"], method=IDM_ALL, reuse=REUSE)
    assert work_on(GatedBlock(), (X, C), rules, variant=REFRESH).applied["instrument_attention"] == 0


def test_a_block_without_an_attention_site_cannot_be_read() -> None:
    work = capture_work(GatedBlock(), (X, C), recipe([ATTN, FF], merged=["ff"], method=IDM_ALL))
    work.attention_places = ()  # the recipe names attention in other blocks
    with pytest.raises(
        SiteError,
        match="method 'idm' reads attention, but the recipe names no attention site in GatedBlock; add one",
    ):
        run_passes(work, PASSES)


def test_attention_that_is_merged_cannot_be_read() -> None:
    with pytest.raises(
        SiteError, match="reads the block's own, dense attention; take site 'attn' out of stage 'all'"
    ):
        work_on(GatedBlock(), (X, C), recipe([ATTN, FF], method=IDM_ALL))


class FeedForwardFirst(GatedBlock):
    def forward(self, hidden_states: torch.Tensor, temb: torch.Tensor) -> torch.Tensor:
        normed, gate = self.norm2(hidden_states, temb)
        hidden_states = hidden_states + gate * self.ff(normed)
        normed, gate = self.norm1(hidden_states, temb)
        return hidden_states + gate * self.attn(normed)


def test_attention_behind_the_feed_forward_comes_too_late() -> None:
    rules = recipe([ATTN, FF], merged=["ff"], method=IDM_ALL)
    with pytest.raises(
        SiteError, match=r"its attention needs \w+, which is computed after the plan that reads attention"
    ):
        work_on(FeedForwardFirst(), (X, C), rules)


# -- weighing --------------------------------------------------------------------------------------


def expected_joint(block: DualBlock, bias: float) -> torch.Tensor:
    with torch.no_grad():
        normed, _ = block.norm1(X, C)
        query, key, value = heads_of(block.attn, torch.cat([T, normed], dim=1))
        mask = torch.zeros(key.shape[2])
        mask[: T.shape[1]] = bias
        joint = F.scaled_dot_product_attention(query, key, value, attn_mask=mask.expand(1, 1, 1, -1))
        return block.attn.out(joint.transpose(1, 2).flatten(2))[:, T.shape[1] :]


class OnlyJoint(DualBlock):
    """Hands out the attention's image part."""

    def forward(
        self, hidden_states: torch.Tensor, encoder_hidden_states: torch.Tensor, temb: torch.Tensor
    ) -> Any:
        normed, _ = self.norm1(hidden_states, temb)
        return hidden_states + self.attn(hidden_states=normed, encoder_hidden_states=encoder_hidden_states)[0]


@pytest.mark.parametrize("bias", [0.0, TWO, -1.0])
def test_text_keys_get_the_bias_where_text_is_joined_before_heads_are_split(bias: float) -> None:
    rules = recipe([ATTN | {"output": 0}], prompt=PROMPT)
    block = OnlyJoint()
    worked = work_on(block, (X, T, C), rules, variant=DENSE)
    out = worked.run(X, T, C, call=Calls(rules).make(variant=DENSE, prompt_bias=torch.tensor(bias)))
    close(out - X, expected_joint(block, bias))


def test_a_prefix_is_text_too() -> None:
    rules, block = recipe(PARALLEL, merged=["mlp"], prompt=PROMPT), ParallelBlock()
    worked = work_on(block, (X, T, C), rules, variant=DENSE)
    outputs = [
        worked.run(X, T, C, call=Calls(rules).make(variant=DENSE, prompt_bias=torch.tensor(b)))
        for b in (0.0, TWO, 99.0)
    ]
    with torch.no_grad():
        close(outputs[0], block(X, T, C))
        assert not torch.allclose(outputs[1][1], outputs[0][1], atol=1e-3)
        # A huge weight leaves the text alone in the sum: the image no longer matters to attention.
        normed, gate = block.norm(torch.cat([T, X], dim=1), C)
        query, key, value = heads_of(block.attn, normed)
        only = (
            F.scaled_dot_product_attention(query, key[:, :, :3], value[:, :, :3]).transpose(1, 2).flatten(2)
        )
        mlp = block.act_mlp(block.proj_mlp(normed))
        expected = torch.cat([T, X], 1) + gate * block.proj_out(torch.cat([block.attn.out(only), mlp], -1))
        close(torch.cat(outputs[2], 1), expected)


def test_weighing_and_reading_go_together() -> None:
    rules = recipe(DUAL, merged=["ff"], method=IDM_ALL, prompt=PROMPT)
    block = DualBlock()
    worked = work_on(block, (X, T, C), rules)
    assert worked.applied["instrument_attention"] == 2
    with torch.no_grad():
        close(worked.run(X, T, C, call=Calls(rules).make(remove=0)), block(X, T, C))


def test_keys_that_are_all_image_or_all_text_are_weighed_alike() -> None:
    # One weight on all keys of cross-attention cancels in the softmax.
    sites = [ATTN | {"id": "cross", "match": "attn2"}, FF]
    rules, block = recipe(sites, merged=["ff"], prompt=PROMPT), CrossBlock()
    worked = work_on(block, (X, T, C), rules, variant=DENSE)
    with torch.no_grad():
        close(
            worked.run(X, T, C, call=Calls(rules).make(variant=DENSE, prompt_bias=torch.tensor(TWO))),
            block(X, T, C),
        )


class Double(Attention):
    def forward(self, hidden_states: torch.Tensor) -> torch.Tensor:  # type: ignore[override]
        heads = heads_of(self, hidden_states)
        twice = F.scaled_dot_product_attention(*heads) + F.scaled_dot_product_attention(*heads)
        return self.out(twice.transpose(1, 2).flatten(2))


class PrefixNamed(Attention):
    """An attention module with arguments of the names that rewritten graphs use."""

    def forward(self, ctx: torch.Tensor, prefix: torch.Tensor | None = None) -> torch.Tensor:  # type: ignore[override]
        return super().forward(ctx) if prefix is None else super().forward(ctx) + prefix


def test_attention_that_cannot_be_weighed() -> None:
    block = GatedBlock()
    block.attn = Double()
    with pytest.raises(SiteError, match="site 'attn': Double computes attention 2 times, expected once"):
        work_on(block, (X, C), recipe([ATTN, FF], prompt=PROMPT), variant=DENSE)


class CallsPrefixNamed(GatedBlock):
    def __init__(self) -> None:
        super().__init__()
        self.attn = PrefixNamed()

    def forward(self, hidden_states: torch.Tensor, temb: torch.Tensor) -> torch.Tensor:
        return hidden_states + self.attn(hidden_states, prefix=temb[:, None])


def test_an_attention_module_may_have_arguments_called_ctx_and_prefix() -> None:
    rules, block = recipe([ATTN | {"input": "ctx"}], prompt=PROMPT), CallsPrefixNamed()
    worked = work_on(block, (X, C), rules, variant=DENSE)
    with torch.no_grad():
        close(worked.run(X, C, call=Calls(rules).make(variant=DENSE)), block(X, C))


def test_rotary_tables_reach_the_opened_module() -> None:
    rules = recipe([ATTN | {"prefix": "encoder_hidden_states"}], prompt=PROMPT)
    block, args = RotaryBlock(), (X, T, C, tables())
    worked = work_on(block, args, rules, variant=DENSE)
    with torch.no_grad():
        close(worked.run(*args, call=Calls(rules).make(variant=DENSE)), block(*args))


# -- looking into modules --------------------------------------------------------------------------


def test_opened_attention_names_its_parts() -> None:
    block = DualBlock()
    call = next(n for n in trace(block, X, T, C).graph.nodes if n.target == "attn")
    opened = open_attention(call, block.attn, "hidden_states", "here")
    assert opened.operation.target is F.scaled_dot_product_attention
    assert opened.sequence == 2
    assert opened.entry.target == "hidden_states"
    assert [a.target for a in opened.arguments] == [
        call.kwargs["hidden_states"].target,
        "encoder_hidden_states",
    ]


@pytest.mark.parametrize(
    ("local", "found"), [("attn", True), ("attn2", True), ("ff", False), ("norm1", False)]
)
def test_which_modules_compute_attention(local: str, found: bool) -> None:
    block = DualBlock()
    call = next(n for n in trace(block, X, T, C).graph.nodes if n.target == local)
    assert has_attention(call, block.get_submodule(local)) == found
    assert isinstance(block.attn, JointAttention)
    assert isinstance(block.ff, nn.Module)


# -- queries and keys ------------------------------------------------------------------------------

AT_EDM = {"name": "at_edm", "probe_queries": None, "iterations": 3}


def test_the_plan_is_given_queries_and_keys_of_image_tokens() -> None:
    rules = recipe(DUAL, merged=["ff"], method=AT_EDM | {"rank": "entropy"})
    block, planned = DualBlock(), {}
    worked = work_on(block, (X, T, C), rules)
    worked.run(X, T, C, call=Calls(rules).make(remove=10), planned=planned)
    with torch.no_grad():
        normed, gate = block.norm1(X, C)
        query, key, _ = heads_of(block.attn, torch.cat([T, normed], dim=1))
        length = T.shape[1]
        heads = AttentionHeads(query[:, :, length:], key[:, :, length:], key[:, :, :length])
        stream = X + gate * block.attn(normed, T)[0]
        metric = block.norm2(stream + gate * block.attn2(normed), C)[0]
    method = AtEdm(probe_queries=None, iterations=3, rank="entropy")
    expected = method.plan(TokenView(metric, GRID, heads=heads), 10)
    assert torch.equal(planned[0].assign, expected.assign)  # type: ignore[attr-defined]
    assert planned[0].reduce == "prune"  # type: ignore[attr-defined]


@pytest.mark.parametrize("share", [["cfg"], ["batch"]])
def test_samples_that_share_a_plan_share_their_heads(share: list[str]) -> None:
    rules = recipe([ATTN, FF], merged=["ff"], method=AT_EDM, plan={"share": share})
    block, planned = GatedBlock(), {}
    worked = work_on(block, (X, C), rules)
    worked.run(X, C, call=Calls(rules).make(remove=10, halves=2), planned=planned)
    plan = planned[0]
    assert plan.assign.shape[0] == (2 if share == ["cfg"] else 1)  # type: ignore[attr-defined]
    assert torch.equal(plan.assign[0], plan.assign[-1])  # type: ignore[attr-defined]


def test_attention_without_text_has_no_importance_from_text() -> None:
    rules = recipe([ATTN, FF], merged=["ff"], method=AT_EDM | {"rank": "power"})
    with pytest.raises(
        SiteError, match="'at_edm' reads attention to text with these options, and there are image"
    ):
        work_on(GatedBlock(), (X, C), rules)


@pytest.mark.parametrize("method", [IDM_ALL, AT_EDM])
def test_cross_attention_says_nothing_of_image_tokens(method: dict[str, Any]) -> None:
    rules = recipe([ATTN | {"match": "attn2"}, FF], merged=["ff"], method=method)
    with pytest.raises(
        SiteError,
        match=r"reads attention among image tokens, and here the keys are those of a text \(cross-att",
    ):
        work_on(CrossBlock(), (X, T, C), rules)
