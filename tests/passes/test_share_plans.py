"""One plan for all sites of a block; an input that two sites share is merged once."""

from __future__ import annotations

import pytest
import torch

from sdtm_fx.passes.share_plans import SHARE_PLANS
from sdtm_fx.rewriting.runner import run_passes
from sdtm_fx.runtime import ops
from tests.passes.blocks import DualBlock, GatedBlock, ParallelBlock, condition, image, text
from tests.passes.working import ATTN, DUAL, FF, PARALLEL, REFRESH, REUSE, Calls, recipe, up_to, work_on

X, T, C = image(), text(), condition()
SITES = up_to("share_plans")


def test_the_first_plan_of_the_block_serves_all_sites() -> None:
    worked = work_on(
        GatedBlock(), (X, C), recipe([FF, ATTN]), passes=SITES
    )  # the recipe's order is not the block's
    assert worked.applied["share_plans"] == 1
    (plan,) = worked.work.calls(ops.plan_tokens)
    order = [n.target for n in worked.work.graph.nodes]
    assert order.index(ops.plan_tokens) < order.index("attn")
    assert {n.args[0] for n in worked.work.calls(ops.merge_tokens, ops.unmerge_tokens)} == {plan}


def test_sites_with_the_same_input_merge_it_once() -> None:
    worked = work_on(ParallelBlock(), (X, T, C), recipe(PARALLEL), passes=SITES)
    for function in (ops.plan_tokens, ops.place_plan, ops.image_tokens, ops.merge_tokens):
        assert worked.count(function) == 1
    assert worked.count(ops.unmerge_tokens) == 2


def test_dual_attention_merges_the_shared_norm_once() -> None:
    worked = work_on(DualBlock(), (X, T, C), recipe(DUAL), passes=SITES)
    assert worked.applied["share_plans"] == 2
    assert worked.count(ops.merge_tokens) == 2  # one for both attentions, one for the feed-forward


@pytest.mark.parametrize("variant", [REFRESH], ids=["refresh"])
def test_without_plans_there_is_nothing_to_share(variant: object) -> None:
    worked = work_on(DualBlock(), (X, T, C), recipe(DUAL, reuse=REUSE), variant=REFRESH, passes=SITES)
    assert worked.applied["share_plans"] == 0


def test_a_second_run_finds_nothing() -> None:
    worked = work_on(DualBlock(), (X, T, C), recipe(DUAL), passes=SITES)
    before = str(worked.work.graph)
    assert run_passes(worked.work, (SHARE_PLANS,)) == {"share_plans": 0}
    assert str(worked.work.graph) == before


def test_a_shared_plan_that_removes_nothing_changes_nothing() -> None:
    block, rules = DualBlock(), recipe(DUAL)
    worked = work_on(block, (X, T, C), rules, passes=SITES)
    with torch.no_grad():
        torch.testing.assert_close(
            worked.run(X, T, C, call=Calls(rules).make(remove=0)), block(X, T, C), rtol=0, atol=0
        )
