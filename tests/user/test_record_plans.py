"""`record_plans`: what merged, step by step and block by block, without a trace on the results."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn

import sdtm_fx
from sdtm_fx.plan import MergePlan
from tests.pipelines import tiny_flux_pipeline, tiny_sd3_pipeline
from tests.user.cases import DENSE, FLUX_DEV, SD3, Case, all_equal, module_state, run_steps, the_rewriting
from tests.user.runs import flux_images, sd3_images

STEPS, GRID = 8, (8, 8)


def test_kept_counts_are_those_of_the_schedule_and_results_do_not_change(case: Case) -> None:
    model, inputs = sdtm_fx.rewrite(case.model(), case.recipe()), case.inputs(grid=GRID)
    expected = run_steps(model, inputs)
    with sdtm_fx.record_plans(model) as record:
        assert all_equal(run_steps(model, inputs), expected)
    report = sdtm_fx.explain(model, quiet=True)
    sites = {(s.phase, s.path): s for s in report.sites}
    for index, phase in enumerate(report.phases):
        for step in phase.steps:
            told = record.at(step=step)
            assert {s.path for s in told} == {path for number, path in sites if number == index}
            for site in told:
                assert site.kept == sites[index, site.path].tokens_after
                assert site.steps == STEPS
                assert (site.action == "merged") == (site.kept < site.tokens)
                assert site.kind == sites[index, site.path].kind
                assert site.stage == (None if phase.removed == 0 else phase.label)


@pytest.mark.parametrize("case", [SD3, FLUX_DEV], ids=lambda case: case.name)
def test_slots_are_those_of_the_plans_that_ran(case: Case) -> None:
    model, seen = sdtm_fx.rewrite(case.model(), case.recipe()), []
    runtime = the_rewriting(model).runtime

    def look(block: nn.Module, args: Any, output: Any) -> None:
        seen.append(list(runtime.planned.values())[-1] if runtime.planned else None)

    for path in the_rewriting(model).bindings:
        model.get_submodule(path).register_forward_hook(look)
    with sdtm_fx.record_plans(model) as record:
        run_steps(model, case.inputs(grid=GRID))
    told = {(s.step, s.block): s for s in record if s.action != "dense" or s.kind == "feed_forward"}
    assert len(told) == len(seen)
    assert any(s.action == "merged" for s in told.values())
    for site, plan in zip(told.values(), seen, strict=True):
        if site.action != "merged":
            assert site.assign is site.positions is site.sizes is site.merged_mask is None
            continue
        assert isinstance(plan, MergePlan)
        assert site.assign is not None
        assert site.positions is not None
        assert site.assign.dtype == torch.int32
        assert site.assign.shape == (2, 64)
        assert torch.equal(site.assign.long(), plan.assign.expand(2, -1))
        assert torch.equal(site.positions.long(), plan.positions.expand(2, -1))
        assert torch.equal(site.sizes, plan.sizes.expand(2, -1))
        assert torch.equal(site.merged_mask, plan.merged_mask.expand(2, -1))


def test_dense_steps_are_told_apart() -> None:
    model = sdtm_fx.rewrite(SD3.model(), SD3.recipe())
    with sdtm_fx.record_plans(model) as record:
        run_steps(model, SD3.inputs())
    by_step = {step: {s.site: s.action for s in record.at(step=step)} for step in range(STEPS)}
    assert by_step[0] == {"attn": "refresh", "ff": "refresh"}  # stored for the structure stage
    assert by_step[1] == {"attn": "merged", "ff": "merged"}
    assert by_step[3] == {"attn": "dense", "ff": "refresh"}  # the detail stage merges feed-forward only
    assert by_step[5] == {"attn": "dense", "ff": "merged"}
    assert by_step[7] == {"attn": "dense", "ff": "dense"}  # no stage follows
    assert {s.stage for s in record.at(action="refresh")} == {None}
    assert {s.stage for s in record.at(step=5)} == {"detail"}


def test_without_reuse_and_without_merging_all_is_dense() -> None:
    model = sdtm_fx.rewrite(SD3.model(), SD3.recipe({**DENSE, "reuse": None}))
    with sdtm_fx.record_plans(model) as record:
        run_steps(model, SD3.inputs())
    assert {s.action for s in record} == {"dense"}
    assert len(record) == STEPS * 2 * 2
    assert {s.kept for s in record} == {64}


def test_a_stage_that_skips_is_forecast() -> None:
    skip = {"stages.*.method": {"name": "skip"}}
    model = sdtm_fx.rewrite(SD3.model(), SD3.recipe(skip))
    with sdtm_fx.record_plans(model) as record:
        run_steps(model, SD3.inputs())
    assert {(s.kept, s.assign) for s in record.at(action="forecast")} == {(0, None)}
    assert not record.at(action="merged")


def test_blocks_that_are_kept_dense_are_listed() -> None:
    model = sdtm_fx.rewrite(SD3.model(), SD3.recipe({"keep_dense.layers": [0]}))
    with sdtm_fx.record_plans(model) as record:
        run_steps(model, SD3.inputs())
    kept = record.at(block="transformer_blocks.0")
    assert len(kept) == STEPS * 2
    assert {s.action for s in kept} == {"dense"}
    assert {s.path for s in kept} == {"transformer_blocks.0.attn", "transformer_blocks.0.ff"}
    assert record.at(block="transformer_blocks.1", action="merged")


def test_blocks_that_do_not_run_are_not_listed() -> None:
    model = sdtm_fx.rewrite(SD3.model(), SD3.recipe())
    with sdtm_fx.record_plans(model) as record:
        run_steps(model, SD3.inputs(), skip_layers=[1])
    assert {s.block for s in record} == {"transformer_blocks.0"}


def test_a_block_that_lacks_its_features_is_told_as_it_ran() -> None:
    model, inputs = sdtm_fx.rewrite(SD3.model(), SD3.recipe()), SD3.inputs()
    with torch.no_grad(), sdtm_fx.record_plans(model) as record, sdtm_fx.steps(model, STEPS) as clock:
        model(**inputs, skip_layers=[1])
        clock.advance()
        model(**inputs)
    assert {s.action for s in record.at(step=1, block="transformer_blocks.0")} == {"merged"}
    assert {s.action for s in record.at(step=1, block="transformer_blocks.1")} == {"refresh"}


def test_shared_plans_are_copied_once() -> None:
    model = sdtm_fx.rewrite(SD3.model(), SD3.recipe({"plan.every_layers": 2, "plan.share": ["batch"]}))
    with sdtm_fx.record_plans(model) as record:
        run_steps(model, SD3.inputs(batch=3))
    told = record.at(step=1)
    assert len(told) == 4
    assert len({id(s.assign) for s in told}) == 1
    assert told[0].assign is not None
    assert told[0].assign.shape == (3, 64)


def test_a_pipeline_is_recorded_and_draws_the_same_images() -> None:
    pipe = sdtm_fx.rewrite(tiny_sd3_pipeline(layers=2), SD3.recipe())
    images = sd3_images(pipe, batch=2)
    with sdtm_fx.record_plans(pipe) as record:
        assert torch.equal(sd3_images(pipe, batch=2), images)
        first = len(record)
        assert torch.equal(sd3_images(pipe, batch=2), images)
    assert len(record) == 2 * first
    assert len(record.at(generation=0)) == len(record.at(generation=1)) == first
    pairs = zip(
        record.at(generation=0, action="merged"), record.at(generation=1, action="merged"), strict=True
    )
    assert all(torch.equal(a.assign, b.assign) for a, b in pairs)
    merged = record.at(action="merged")[0]
    assert merged.assign is not None
    assert merged.assign.shape == (4, 16)  # both guidance halves
    assert torch.equal(merged.assign[:2], merged.assign[2:])  # which share a plan here
    record.clear()
    assert record.sites == ()


def test_guidance_in_calls_of_its_own() -> None:
    pipe = sdtm_fx.rewrite(
        tiny_flux_pipeline(layers=1, single_layers=1), {"extends": "flux.1-dev-windows", **SMALL_FLUX}
    )
    with sdtm_fx.record_plans(pipe) as record:
        flux_images(pipe, true_cfg=True)
    assert {(s.call, s.context) for s in record} == {(0, "cond"), (1, "uncond")}
    assert all(len({s.call for s in record.at(step=step)}) == 2 for step in range(6))


SMALL_FLUX = {
    "version": 1,
    "name": "small-flux",
    "sites": {"*": {"expect": None}},
    "plan": {"round_to": 1},
}


def test_nothing_is_left_behind() -> None:
    model = sdtm_fx.rewrite(SD3.model(), SD3.recipe())
    before = module_state(model)
    with pytest.raises(KeyboardInterrupt), sdtm_fx.record_plans(model), sdtm_fx.record_plans(model):
        raise KeyboardInterrupt
    assert module_state(model) == before
    assert the_rewriting(model).runtime.watchers == []


def test_recordings_nest() -> None:
    model = sdtm_fx.rewrite(SD3.model(), SD3.recipe())
    with sdtm_fx.record_plans(model) as outer:
        run_steps(model, SD3.inputs())
        with sdtm_fx.record_plans(model) as inner:
            run_steps(model, SD3.inputs())
    assert len(outer) == 2 * len(inner) > 0
    assert [s.kept for s in outer.at(generation=1)] == [s.kept for s in inner]


def test_a_call_that_fails_is_not_recorded() -> None:
    model, inputs = sdtm_fx.rewrite(SD3.model(), SD3.recipe()), SD3.inputs()
    bad = {**inputs, "encoder_hidden_states": inputs["encoder_hidden_states"][..., :3]}
    with torch.no_grad(), sdtm_fx.record_plans(model) as record, sdtm_fx.steps(model, STEPS):
        with pytest.raises(RuntimeError):
            model(**bad)
        assert len(record) == 0
        model(**inputs)
    assert {s.call for s in record} == {0}
    assert len(record) == 4


def test_what_is_not_rewritten_cannot_be_recorded() -> None:
    for target in (SD3.model(), tiny_sd3_pipeline()):
        with (
            pytest.raises(
                sdtm_fx.RewriteError, match=rf"{type(target).__name__} is not rewritten; call sdtm_fx\.rewr"
            ),
            sdtm_fx.record_plans(target),
        ):
            pass


def test_a_restored_model_is_recorded_no_more_and_one_rewritten_anew_is_refused() -> None:
    model, inputs = sdtm_fx.rewrite(SD3.model(), SD3.recipe()), SD3.inputs()
    with torch.no_grad(), sdtm_fx.record_plans(model) as record:
        sdtm_fx.restore(model)
        model(**inputs)
        assert len(record) == 0
        sdtm_fx.rewrite(model, SD3.recipe())
        with pytest.raises(
            sdtm_fx.RewriteError, match="SD3Transformer2DModel was rewritten anew inside the block"
        ):
            run_steps(model, inputs)
    assert len(run_steps(model, inputs)) == STEPS


def test_compiled_code_keeps_its_plans_to_itself() -> None:
    model = sdtm_fx.rewrite(SD3.model(), SD3.recipe())
    with (
        sdtm_fx.record_plans(model),
        pytest.raises(sdtm_fx.RewriteError, match="cannot be compiled inside record_plans; leave the block"),
    ):
        sdtm_fx.compile(model, backend="eager")
    sdtm_fx.compile(model, backend="eager")
    with (
        pytest.raises(
            sdtm_fx.RewriteError, match=r"SD3Transformer2DModel is compiled; record before sdtm_fx"
        ),
        sdtm_fx.record_plans(model),
    ):
        pass
    sdtm_fx.rewrite(model, SD3.recipe())
    with sdtm_fx.record_plans(model) as record:
        run_steps(model, SD3.inputs())
    assert len(record) > 0
