"""``f(x)`` becomes ``unmerge(f(merge(x)))`` at every site, and nothing else changes."""

from __future__ import annotations

import re

import pytest
import torch
from torch import nn

from sdtm_fx.errors import SiteError
from sdtm_fx.passes.insert_merges import INSERT_MERGES
from sdtm_fx.passes.locate_sites import LOCATE_SITES
from sdtm_fx.runtime import ops
from sdtm_fx.runtime.call import Variant
from tests.passes.blocks import DualBlock, GatedBlock, ParallelBlock, TailBlock, condition, image, text
from tests.passes.working import (
    ATTN,
    DUAL,
    FF,
    MERGE,
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
SITES = up_to("insert_merges")


def test_every_site_gets_plan_merge_and_unmerge() -> None:
    worked = work_on(GatedBlock(), (X, C), recipe([ATTN, FF]), passes=SITES)
    assert worked.applied == {"locate_sites": 2, "measure_threshold": 0, "insert_merges": 2}
    for function in (ops.plan_tokens, ops.merge_tokens, ops.unmerge_tokens):
        assert worked.count(function) == 2
    assert worked.count(ops.place_plan) == worked.count(ops.image_tokens) == 0
    assert worked.inputs_of("attn") == worked.inputs_of("ff") == (ops.merge_tokens,)


def test_a_site_outside_the_stage_is_left_alone() -> None:
    worked = work_on(GatedBlock(), (X, C), recipe([ATTN, FF], merged=["ff"]), passes=SITES)
    assert worked.applied["insert_merges"] == 1
    assert worked.inputs_of("attn") != (ops.merge_tokens,)
    assert worked.inputs_of("ff") == (ops.merge_tokens,)


def test_text_beside_the_image_is_not_merged() -> None:
    worked = work_on(DualBlock(), (X, T, C), recipe(DUAL), passes=SITES)
    assert worked.inputs_of("attn") == (ops.merge_tokens, "encoder_hidden_states")
    (side,) = worked.work.sites["attn"].side
    assert all(n.target is not ops.unmerge_tokens for n in side.users)


def test_text_in_front_of_the_image_is_behind_a_prefix() -> None:
    worked = work_on(ParallelBlock(), (X, T, C), recipe(PARALLEL), passes=SITES)
    for function in (
        ops.plan_tokens,
        ops.image_tokens,
        ops.place_plan,
        ops.merge_tokens,
        ops.unmerge_tokens,
    ):
        assert worked.count(function) == 2


def test_users_see_the_unmerged_value_only() -> None:
    worked = work_on(DualBlock(), (X, T, C), recipe(DUAL), passes=SITES)
    for site in worked.work.sites.values():
        assert [n.target for n in site.exit.users] == [ops.unmerge_tokens]


@pytest.mark.parametrize(
    ("block", "args", "sites"),
    [
        (GatedBlock(), (X, C), [ATTN, FF]),
        (ParallelBlock(), (X, T, C), PARALLEL),
        (DualBlock(), (X, T, C), DUAL),
    ],
    ids=["gated", "parallel", "dual"],
)
def test_a_plan_that_removes_nothing_changes_nothing(
    block: nn.Module, args: tuple[torch.Tensor, ...], sites: list
) -> None:  # type: ignore[type-arg]
    rules = recipe(sites)
    worked = work_on(block, args, rules, passes=SITES)
    with torch.no_grad():
        expected = block(*args)
    # Slots of one token in the order of the tokens: the very same rows go through the very same products.
    torch.testing.assert_close(worked.run(*args, call=Calls(rules).make(remove=0)), expected, rtol=0, atol=0)


def test_equal_tokens_merge_without_loss() -> None:
    block, rules = GatedBlock(), recipe([FF])
    same = X[:, :1].expand_as(X).contiguous()
    worked = work_on(block, (same, C), rules, passes=SITES)
    with torch.no_grad():
        close(worked.run(same, C, call=Calls(rules).make(remove=18)), block(same, C))


def test_merged_tokens_share_one_output() -> None:
    block = TailBlock(lambda b, y, x, t: y)
    rules = recipe([FF])
    worked = work_on(block, (X, C), rules, passes=SITES)
    planned: dict[int, object] = {}
    out = worked.run(X, C, call=Calls(rules).make(remove=12), planned=planned) - X
    plan = planned[0]
    mean = plan.merge(X)  # type: ignore[attr-defined]
    with torch.no_grad():
        close(out, plan.unmerge(block.ff(mean)))  # type: ignore[attr-defined]


@pytest.mark.parametrize("variant", [REFRESH, MERGE], ids=["refresh", "skip"])
def test_where_nothing_merges_only_the_way_out_is_marked(variant: Variant) -> None:
    rules = recipe(DUAL, method={"name": "skip"}, reuse=REUSE)
    worked = work_on(DualBlock(), (X, T, C), rules, variant=variant, passes=SITES)
    assert worked.count(ops.plan_tokens) == worked.count(ops.merge_tokens) == 0
    marks = worked.work.calls(ops.unmerge_tokens)
    assert sorted(n.meta["site"] for n in marks) == [
        "attn",
        "attn.0",
        "attn2",
        "ff",
    ]  # the text is forecast too
    assert {n.args[0] for n in marks} == {None}


def test_a_refresh_for_merging_stores_no_text() -> None:
    worked = work_on(DualBlock(), (X, T, C), recipe(DUAL, reuse=REUSE), variant=REFRESH, passes=SITES)
    assert sorted(n.meta["site"] for n in worked.work.calls(ops.unmerge_tokens)) == ["attn", "attn2", "ff"]


def test_a_step_that_only_measures_has_no_marks() -> None:
    rules = recipe([FF], ratio={"threshold": 0.5, "start": 0.5})
    worked = work_on(GatedBlock(), (X, C), rules, variant=Variant(stage=None, measure=0), passes=SITES)
    assert worked.applied["insert_merges"] == 0
    assert worked.count(ops.unmerge_tokens) == 0


def test_a_prefix_names_an_argument_of_the_block() -> None:
    sites = [PARALLEL[1] | {"prefix": "encoder_states"}]
    message = (
        "site 'mlp': ParallelBlock is given no argument 'encoder_states' for `prefix`; "
        "it is given hidden_states, encoder_hidden_states, temb (did you mean 'encoder_hidden_states'?)"
    )
    with pytest.raises(SiteError, match=re.escape(message)):
        work_on(ParallelBlock(), (X, T, C), recipe(sites), passes=SITES)


class TakesContext(nn.Module):
    """A block with an argument of the name that rewritten graphs use."""

    def __init__(self) -> None:
        super().__init__()
        self.ff = nn.Linear(8, 8)

    def forward(self, ctx: torch.Tensor, ctx_: torch.Tensor) -> torch.Tensor:
        return ctx + self.ff(ctx) * ctx_


def test_a_block_may_have_an_argument_called_ctx() -> None:
    block, rules, one = TakesContext(), recipe([FF]), torch.ones(1, 1, 8)
    worked = work_on(block, (X, one), rules, passes=(LOCATE_SITES, INSERT_MERGES))
    with torch.no_grad():
        assert torch.equal(worked.run(X, 3 * one, call=Calls(rules).make(remove=0)), block(X, 3 * one))


def test_the_passes_declare_themselves() -> None:
    assert LOCATE_SITES.exact
    assert not INSERT_MERGES.exact
