"""What an unmerge becomes in the end: a store, a blend, or a forecast."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from sdtm_fx.passes.reuse_features import REUSE_FEATURES
from sdtm_fx.rewriting.runner import run_passes
from sdtm_fx.runtime import ops
from tests.passes.blocks import DualBlock, GatedBlock, ParallelBlock, TailBlock, condition, image, text
from tests.passes.working import ATTN, DUAL, FF, PARALLEL, REFRESH, REUSE, SSM, Calls, close, recipe, work_on

X, T, C = image(), text(), condition()
SKIP = {"name": "skip"}


def test_without_reuse_unmerges_stay() -> None:
    worked = work_on(GatedBlock(), (X, C), recipe([ATTN, FF]))
    assert worked.applied["reuse_features"] == 0
    assert worked.count(ops.unmerge_tokens) == 2


def test_a_merging_stage_blends() -> None:
    worked = work_on(GatedBlock(), (X, C), recipe([ATTN, FF], reuse=REUSE))
    assert worked.applied["reuse_features"] == 2
    assert worked.count(ops.unmerge_tokens) == 0
    assert [n.args[3] for n in worked.work.calls(ops.blend_forecast)] == ["attn", "ff"]
    assert [n.meta["site"] for n in worked.work.calls(ops.blend_forecast)] == ["attn", "ff"]


def test_a_dense_step_stores() -> None:
    worked = work_on(GatedBlock(), (X, C), recipe([ATTN, FF], reuse=REUSE), variant=REFRESH)
    assert worked.applied["reuse_features"] == 2
    assert [n.args[2] for n in worked.work.calls(ops.store_feature)] == ["attn", "ff"]
    assert worked.count(ops.unmerge_tokens) == worked.count(ops.plan_tokens) == 0


def test_a_skipping_stage_forecasts_and_what_computed_it_goes_away() -> None:
    worked = work_on(DualBlock(), (X, T, C), recipe(DUAL, method=SKIP, reuse=REUSE))
    assert sorted(n.args[1] for n in worked.work.calls(ops.forecast_feature)) == [
        "attn",
        "attn.0",
        "attn2",
        "ff",
    ]
    assert worked.count("attn") == worked.count("attn2") == worked.count("ff") == 0
    assert worked.count("norm1") == worked.count("norm2") == 0  # nothing else used them


def test_a_skipped_branch_takes_its_half_of_the_projection_along() -> None:
    worked = work_on(ParallelBlock(), (X, T, C), recipe(PARALLEL, merged=["mlp"], method=SKIP, reuse=REUSE))
    assert worked.count("proj_mlp") == worked.count("act_mlp") == 0
    assert worked.count("attn") == 1
    assert worked.count(ops.linear_part) == 1
    assert [n.args[1] for n in worked.work.calls(ops.forecast_feature)] == ["mlp"]


def test_what_is_stored_is_what_is_blended() -> None:
    for sites, merged in ((PARALLEL, ["mlp"]), (PARALLEL, ["attn", "mlp"])):
        for method in (SSM, SKIP):
            rules = recipe(sites, merged=merged, method=method, reuse=REUSE)
            stage = work_on(ParallelBlock(), (X, T, C), rules)
            refresh = work_on(ParallelBlock(), (X, T, C), rules, variant=REFRESH)
            stored = {n.args[2] for n in refresh.work.calls(ops.store_feature)}
            used = {n.args[-1] for n in stage.work.calls(ops.blend_forecast, ops.forecast_feature)}
            assert stored == used


def test_stores_stay_though_nothing_uses_them() -> None:
    worked = work_on(TailBlock(lambda b, y, x, t: y), (X, C), recipe([FF], reuse=REUSE), variant=REFRESH)
    (store,) = worked.work.calls(ops.store_feature)
    store.replace_all_uses_with(store.args[1])  # type: ignore[arg-type]
    worked.work.drop_unused()
    assert worked.count(ops.store_feature) == 1


# -- numbers -------------------------------------------------------------------------------------


@pytest.mark.parametrize("order", [0, 1])
def test_a_refresh_is_the_dense_block_bit_for_bit(order: int) -> None:
    rules = recipe([ATTN, FF], reuse={"order": order, "weight": 0.1})
    block = GatedBlock()
    refresh, calls = work_on(block, (X, C), rules, variant=REFRESH), Calls(rules)
    with torch.no_grad():
        assert torch.equal(refresh.run(X, C, call=calls.make(variant=REFRESH)), block(X, C))
    assert sorted(calls.state.features) == [(0, "attn"), (0, "ff")]
    assert all((f.older is not None) == (order == 1) for f in calls.state.features.values())


@pytest.mark.parametrize("method", [SSM, SKIP], ids=["merge", "skip"])
def test_a_forecast_of_the_same_input_is_the_dense_block(method: dict[str, Any]) -> None:
    # Weight 0: merged positions take the stored value, which here is the true one.
    rules = recipe([ATTN, FF], merged=["ff"], method=method, reuse={"order": 0, "weight": 0.0})
    block, calls = GatedBlock(), Calls(rules)
    refresh = work_on(block, (X, C), rules, variant=REFRESH)
    stage = work_on(block, (X, C), rules)
    with torch.no_grad():
        dense = block(X, C)
        refresh.run(X, C, call=calls.make(variant=REFRESH))
        close(stage.run(X, C, call=calls.make(remove=12)), dense)


def test_weight_one_is_plain_merging() -> None:
    plain = recipe([FF])
    blended = recipe([FF], reuse={"order": 0, "weight": 1.0})
    block, calls = GatedBlock(), Calls(blended)
    work_on(block, (X, C), blended, variant=REFRESH).run(X, C, call=calls.make(variant=REFRESH))
    one = work_on(block, (X, C), blended).run(X, C, call=calls.make(remove=12))
    close(one, work_on(block, (X, C), plain).run(X, C, call=Calls(plain).make(remove=12)))


def test_merged_positions_blend_and_others_are_new() -> None:
    block = TailBlock(lambda b, y, x, t: y)
    rules = recipe([FF], reuse={"order": 0, "weight": 0.25})
    calls, older = Calls(rules), image(seed=7)
    work_on(block, (older, C), rules, variant=REFRESH).run(older, C, call=calls.make(variant=REFRESH))
    planned: dict[int, Any] = {}
    out = work_on(block, (X, C), rules).run(X, C, call=calls.make(remove=9), planned=planned) - X
    plan = planned[0]
    with torch.no_grad():
        new, stored = plan.unmerge(block.ff(plan.merge(X))), block.ff(older)
    mask = plan.merged_mask[..., None]
    assert 0 < int(mask.sum()) < mask.numel()
    close(out, torch.where(mask, 0.25 * new + 0.75 * stored, new))


@pytest.mark.parametrize("update", ["dense", "tokens"])
def test_a_merging_step_stores_lone_tokens_where_the_recipe_says_so(update: str) -> None:
    block = TailBlock(lambda b, y, x, t: y)
    rules = recipe([FF], reuse={"order": 0, "weight": 0.25, "update": update})
    calls, older = Calls(rules), image(seed=7)
    work_on(block, (older, C), rules, variant=REFRESH).run(older, C, call=calls.make(variant=REFRESH))
    dense = calls.state.features[0, "ff"].newer.clone()
    planned: dict[int, Any] = {}
    work_on(block, (X, C), rules).run(X, C, call=calls.make(remove=9), planned=planned)
    plan, stored = planned[0], calls.state.features[0, "ff"].newer
    if update == "dense":
        assert torch.equal(stored, dense)
        return
    with torch.no_grad():
        new = plan.unmerge(block.ff(plan.merge(X)))
    close(stored, torch.where(plan.merged_mask[..., None], dense, new))  # blends are stored nowhere


def test_a_second_run_finds_nothing() -> None:
    for variant in (REFRESH, None):
        rules = recipe([ATTN, FF], reuse=REUSE)
        worked = work_on(GatedBlock(), (X, C), rules, **({} if variant is None else {"variant": variant}))
        before = str(worked.work.graph)
        assert run_passes(worked.work, (REUSE_FEATURES,)) == {"reuse_features": 0}
        assert str(worked.work.graph) == before
