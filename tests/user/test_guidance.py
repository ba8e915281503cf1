"""Guidance: what both halves share, and which calls are branches of their own."""

from __future__ import annotations

from typing import Any

import pytest
import torch

import sdtm_fx
from sdtm_fx.methods.ssm import SSM
from tests.pipelines import tiny_flux_pipeline, tiny_sd3_pipeline
from tests.user.cases import DENSE, FLUX_DEV, SD3, the_rewriting
from tests.user.runs import flux_images, one_step, recorded_calls, sd3_images


@pytest.fixture(scope="module")
def sd3() -> Any:
    return sdtm_fx.rewrite(tiny_sd3_pipeline(layers=3), SD3.recipe())


def test_both_guidance_halves_share_a_plan(sd3: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    planned: list[int] = []
    plan = SSM.plan

    def spy(self: SSM, view: Any, remove: int) -> Any:
        if not view.metric.is_meta:  # the cost model plans on meta
            planned.append(view.metric.shape[0])
        return plan(self, view, remove)

    monkeypatch.setattr(SSM, "plan", spy)
    with recorded_calls(sd3) as calls:
        sd3_images(sd3, batch=3, cfg=True)
    assert {call.halves for call in calls} == {2}
    assert set(planned) == {3}  # six samples, three plans
    planned.clear()
    with recorded_calls(sd3) as calls:
        sd3_images(sd3, batch=2, cfg=False)
    assert {call.halves for call in calls} == {1}
    assert set(planned) == {2}


def test_without_sharing_each_half_has_its_plan(monkeypatch: pytest.MonkeyPatch) -> None:
    pipe = sdtm_fx.rewrite(tiny_sd3_pipeline(), SD3.recipe({"plan.share": []}))
    with recorded_calls(pipe) as calls:
        sd3_images(pipe)
    assert {call.halves for call in calls} == {1}


def test_skip_layer_guidance() -> None:
    plain, pipe = tiny_sd3_pipeline(layers=3), tiny_sd3_pipeline(layers=3)
    options = {"skip_guidance_layers": [1], "skip_layer_guidance_start": 0.2, "skip_layer_guidance_stop": 0.8}
    sdtm_fx.rewrite(pipe, SD3.recipe(DENSE))
    assert torch.equal(sd3_images(pipe, 10, batch=2, **options), sd3_images(plain, 10, batch=2, **options))
    sdtm_fx.rewrite(pipe, SD3.recipe())
    with recorded_calls(pipe) as calls:
        first = sd3_images(pipe, 10, batch=2, **options)
    assert {call.halves for call in calls} == {1, 2}
    states = [id(call.state) for call in calls if call.halves == 1]
    assert len(states) == len(calls) - 10 > 2
    assert len(set(states)) == 1  # one branch of its own
    assert any(call.phase.remove for call in calls if call.halves == 1)
    assert torch.equal(sd3_images(pipe, 10, batch=2, **options), first)


def test_true_guidance_keeps_the_branches_of_flux_apart() -> None:
    pipe = sdtm_fx.rewrite(tiny_flux_pipeline(), FLUX_DEV.recipe())
    with recorded_calls(pipe) as calls:
        first = flux_images(pipe, true_cfg=True)
    branches = list(the_rewriting(pipe.transformer).runtime.state.branches)
    assert [branch[0] for branch in branches] == ["cond", "uncond"]
    assert calls[0].state is not calls[1].state
    assert calls[0].state is calls[2].state
    assert torch.equal(flux_images(pipe, true_cfg=True), first)


def test_sequential_guidance_of_a_bare_model_keeps_its_branches_apart() -> None:
    model, cond = SD3.model(), SD3.inputs(batch=1)
    uncond = {**cond, "encoder_hidden_states": -cond["encoder_hidden_states"]}
    sdtm_fx.rewrite(model, SD3.recipe())
    alone = {}
    for name, inputs in (("cond", cond), ("uncond", uncond)):
        with sdtm_fx.steps(model, 6) as clock:
            alone[name] = [one_step(model, inputs, clock) for _ in range(6)]
    with sdtm_fx.steps(model, 6) as clock:
        for step in range(6):
            first, second = model(**cond)[0], model(**uncond)[0]
            clock.advance()
            assert torch.equal(first, alone["cond"][step])
            assert torch.equal(second, alone["uncond"][step])


def test_manual_steps_with_stacked_halves() -> None:
    model, inputs = SD3.model(), SD3.inputs(batch=4)
    sdtm_fx.rewrite(model, SD3.recipe())
    runtime = the_rewriting(model).runtime
    with sdtm_fx.steps(model, 6, cfg_halves=2) as clock:
        clock.step = 0
        model(**inputs)
        clock.advance()
        seen = []
        handle = model.register_forward_pre_hook(lambda module, args: seen.append(runtime.call.halves))
        model(**inputs)
        handle.remove()
    assert seen == [2]
    with sdtm_fx.steps(model, 6, cfg_halves=3) as clock:
        model(**inputs)  # the first step is dense
        clock.advance()
        with pytest.raises(sdtm_fx.PlanError, match="3 CFG halves"):
            model(**inputs)
