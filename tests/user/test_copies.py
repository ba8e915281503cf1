"""Copies and saved files of a rewritten model, and gradient checkpointing."""

from __future__ import annotations

import copy
from pathlib import Path

import pytest
import torch

import sdtm_fx
from sdtm_fx.rewriting.rewriting import rewriting_of
from tests.pipelines import sd3_prompt_kwargs, tiny_sd3_pipeline
from tests.user.cases import (
    FLUX_DEV,
    SD3,
    Case,
    all_equal,
    run_plain,
    run_steps,
    the_rewriting,
)

BOTH = pytest.mark.parametrize("case", [SD3, FLUX_DEV], ids=lambda case: case.name)
WHEN = pytest.mark.parametrize("when", ["before", "after"])

BOTH = pytest.mark.parametrize("case", [SD3, FLUX_DEV], ids=lambda case: case.name)


@BOTH
def test_a_saved_model_is_the_original(case: Case, tmp_path: Path) -> None:
    model, inputs = case.model(), case.inputs()
    plain = run_plain(model, inputs, 2)
    sdtm_fx.rewrite(model, case.recipe())
    run_steps(model, inputs, 2)
    model.save_pretrained(tmp_path)
    loaded = type(model).from_pretrained(tmp_path)
    assert rewriting_of(loaded) is None
    assert all_equal(run_plain(loaded.eval(), inputs, 2), plain)


@BOTH
def test_a_copy_has_its_own_rewriting(case: Case) -> None:
    model, inputs = case.model(), case.inputs()
    plain = run_plain(model, inputs)
    sdtm_fx.rewrite(model, case.recipe())
    merged = run_steps(model, inputs)
    twin = copy.deepcopy(model)
    mine, its = the_rewriting(model), the_rewriting(twin)
    assert mine is not its
    assert all(its.bindings[path] is not mine.bindings[path] for path in mine.bindings)
    assert its.runtime.state is not mine.runtime.state
    for parameter in twin.parameters():
        parameter.zero_()  # the copy runs its own weights, and the original still runs its own
    assert not all_equal(run_steps(twin, inputs), merged)
    assert all_equal(run_steps(model, inputs), merged)
    twin.load_state_dict(model.state_dict())
    assert all_equal(run_steps(twin, inputs), merged)
    sdtm_fx.restore(twin)
    assert all_equal(run_plain(twin, inputs), plain)
    assert all_equal(run_steps(model, inputs), merged)


def test_a_copied_pipeline_reads_its_own_guidance() -> None:
    pipe = sdtm_fx.rewrite(tiny_sd3_pipeline(), SD3.recipe())
    twin = copy.deepcopy(pipe)
    pipe(num_inference_steps=2, **sd3_prompt_kwargs(cfg=True))
    twin(num_inference_steps=2, **sd3_prompt_kwargs(2, cfg=False))
    assert pipe.do_classifier_free_guidance
    assert the_rewriting(pipe.transformer).runtime.guided()
    assert not the_rewriting(twin.transformer).runtime.guided()


@BOTH
def test_gradient_checkpointing_changes_nothing(case: Case) -> None:
    model, inputs = case.model(), case.inputs()
    sdtm_fx.rewrite(model, case.recipe())
    expected = run_steps(model, inputs)
    model.enable_gradient_checkpointing()
    assert all_equal(run_steps(model, inputs), expected)
    with torch.enable_grad(), sdtm_fx.steps(model, 8) as clock:
        for each in expected:
            moved = {**inputs}
            step = clock.step
            moved["hidden_states"] = inputs["hidden_states"] * (1.0 - 0.5 * step / 8) + 0.1 * step / 8
            moved["timestep"] = inputs["timestep"] * (1.0 - step / 8)
            assert torch.equal(model(**moved)[0], each)
            clock.advance()
        held = the_rewriting(model).runtime.state
        features = [f for branch in held.branches.values() for f in branch.features.values()]
        assert features
        assert not any(f.newer.requires_grad for f in features)
