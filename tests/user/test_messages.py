"""What `rewrite`, `restore` and `steps` say when something is wrong; the model is as it was afterwards."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import pytest
import torch
from torch import nn

import sdtm_fx
from tests.pipelines import tiny_flux_pipeline, tiny_sd3_pipeline
from tests.user.cases import FLUX_ATTENTION, FLUX_DEV, SD3, SD35_MEDIUM, Case, module_state, run_steps


@pytest.fixture(scope="module")
def models() -> Mapping[str, nn.Module]:
    return {case.name: case.model() for case in (SD3, SD35_MEDIUM, FLUX_DEV, FLUX_ATTENTION)}


FAULTS: dict[str, tuple[Case, dict[str, Any], type[Exception], str]] = {
    "no match, near misses": (
        SD3,
        {"sites.ff.match": "transformer_blocks.*.fff"},
        sdtm_fx.NothingMatched,
        r"site 'ff': 'transformer_blocks\.\*\.fff' matches no module of SD3Transformer2DModel; "
        r"nearest: .*transformer_blocks\.\d\.ff",
    ),
    "expectation": (
        SD3,
        {"sites.ff.expect": 24},
        sdtm_fx.NothingMatched,
        r"site 'ff': .* matches 2 modules .* the recipe expects 24 \(first: .*0\.ff, last: .*1\.ff\)",
    ),
    "same module twice": (
        SD3,
        {"sites.ff.match": "transformer_blocks.*.attn", "sites.ff.kind": "attention"},
        sdtm_fx.SiteError,
        r"sites 'attn' and 'ff' overlap: transformer_blocks\.0\.attn and transformer_blocks\.0\.attn",
    ),
    "module inside a module": (
        SD3,
        {"sites.ff.match": "transformer_blocks.*.attn.to_q"},
        sdtm_fx.SiteError,
        r"sites 'attn' and 'ff' overlap: transformer_blocks\.0\.attn and .*0\.attn\.to_q; a module",
    ),
    "kind: not attention": (
        SD3,
        {"sites.ff.kind": "attention"},
        sdtm_fx.SiteError,
        r"site 'ff' at transformer_blocks\.0\.ff is said to be attention, but it does not compute attention",
    ),
    "kind: attention": (
        SD3,
        {"sites.attn.kind": "feed_forward"},
        sdtm_fx.SiteError,
        r"site 'attn' at .*attn is said to be feed_forward, but it computes attention",
    ),
    "input": (
        SD3,
        {"sites.attn.input": "hidden_state"},
        sdtm_fx.SiteError,
        r"site 'attn' .*: Attention has no argument 'hidden_state'; it has hidden_states, .*"
        r"did you mean 'hidden_states'\?",
    ),
    "input that is not passed": (
        SD3,
        {"sites.attn.input": "attention_mask"},
        sdtm_fx.SiteError,
        "the block does not pass argument 'attention_mask'",
    ),
    "output": (
        SD3,
        {"sites.attn.output": 2},
        sdtm_fx.SiteError,
        r"site 'attn' .*: output 2 is not taken by the block; it takes 0, 1",
    ),
    "output that is needed": (
        SD3,
        {"sites.attn.output": None},
        sdtm_fx.SiteError,
        r"site 'attn' .*: it returns a tuple of 2; say which with `output`",
    ),
    "text output": (
        SD3,
        {"sites.attn.output": 1},
        sdtm_fx.SiteError,
        r"site 'attn' .*: tokens go in as \[.*\] and come out as \[.*\]; a site keeps the number of tokens",
    ),
    "prefix": (
        FLUX_DEV,
        {"sites.single_ff.prefix": "encoder_states"},
        sdtm_fx.SiteError,
        "site 'single_ff': .*is given no argument 'encoder_states' for `prefix`; .*encoder_hidden_states",
    ),
    "rotary": (
        FLUX_ATTENTION,
        {"sites.attn.rotary": "rotary"},
        sdtm_fx.SiteError,
        "site 'attn': the block passes no 'rotary' to attn; it passes .*image_rotary_emb",
    ),
    "rotary without one plan": (
        FLUX_ATTENTION,
        {"plan.share": []},
        sdtm_fx.RecipeError,
        "rotary tables have no batch axis, .* accepted plan.share with 'batch'",
    ),
    "idm with merged attention": (
        SD3,
        {"stages.structure.method": {"name": "idm"}},
        sdtm_fx.SiteError,
        "method 'idm' reads the block's own, dense attention; take site 'attn' out of stage 'structure'",
    ),
    "kept layer out of range": (
        SD3,
        {"keep_dense.layers": [7]},
        sdtm_fx.NothingMatched,
        "keep_dense.layers: there is no block 7; the model has 2",
    ),
    "kept layer without match": (
        SD3,
        {"keep_dense.layers": ["blocks.0"]},
        sdtm_fx.NothingMatched,
        r"keep_dense\.layers: 'blocks\.0' matches no block; the first is transformer_blocks\.0",
    ),
    "all layers kept": (
        SD3,
        {"keep_dense.layers": ["transformer_blocks.*"]},
        sdtm_fx.NothingMatched,
        "keep every block; nothing is left to merge",
    ),
    "no inputs": (
        SD3,
        {"inputs": None},
        sdtm_fx.RewriteError,
        "has no `inputs`, .* add `inputs` to the recipe .* or pass `example=`",
    ),
    "another model": (
        FLUX_DEV,
        {"model": ["SD3Transformer2DModel"]},
        sdtm_fx.RewriteError,
        r"is for SD3Transformer2DModel, this model is a FluxTransformer2DModel",
    ),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_rewrite_says_what_is_wrong(fault: str, models: Mapping[str, nn.Module]) -> None:
    case, changes, error, text = FAULTS[fault]
    model = models[case.name]
    before = module_state(model)
    with pytest.raises(error, match=text):
        sdtm_fx.rewrite(model, changed(case, changes))
    assert module_state(model) == before


def changed(case: Case, changes: dict[str, Any]) -> Any:
    """A recipe with changes; None takes a key away."""
    data = case.recipe({k: v for k, v in changes.items() if v is not None}).to_data()
    for key in [k for k, v in changes.items() if v is None]:
        *path, last = key.split(".")
        owner: Any = data
        for part in path:
            owner = next(s for s in owner if s["id"] == part) if isinstance(owner, list) else owner[part]
        del owner[last]
    return data


def test_idm_needs_an_attention_site() -> None:
    data = SD3.recipe({"stages.*.method": {"name": "idm"}, "stages.*.sites": ["ff"], "reuse": None}).to_data()
    data["sites"] = [site for site in data["sites"] if site["id"] == "ff"]
    with pytest.raises(sdtm_fx.SdtmFxError, match="attention"):
        sdtm_fx.rewrite(SD3.model(), data)


def test_a_window_that_cannot_reach_the_ratio() -> None:
    model = SD3.model()
    with pytest.raises(sdtm_fx.SdtmFxError, match=r"ratio.*0\.9"):
        sdtm_fx.rewrite(model, SD3.recipe({"ratio": {"curve": "constant", "start": 0.9}}))
    sdtm_fx.rewrite(model, SD3.recipe())
    with pytest.raises(
        sdtm_fx.ScheduleError, match=r"on a 5x3 grid; ssm can remove at most 6 of 15 tokens there"
    ):
        run_steps(model, SD3.inputs(grid=(5, 3)))


def test_an_example_call_stands_in_for_inputs() -> None:
    model, inputs = SD3.model(), SD3.inputs()
    with_inputs = run_steps(sdtm_fx.rewrite(SD3.model(), SD3.recipe()), inputs, 4)
    sdtm_fx.rewrite(model, changed(SD3, {"inputs": None}), example=SD3.inputs(batch=1, grid=(4, 4)))
    assert [out.shape for out in run_steps(model, inputs, 4)] == [out.shape for out in with_inputs]


def test_a_compiled_model_is_refused() -> None:
    text = "compiled already; rewrite it first, then compile"
    with pytest.raises(sdtm_fx.RewriteError, match=text):
        sdtm_fx.rewrite(torch.compile(SD3.model()), SD3.recipe())
    in_place = SD3.model()
    in_place.compile()
    with pytest.raises(sdtm_fx.RewriteError, match=text):
        sdtm_fx.rewrite(in_place, SD3.recipe())
    pipe = tiny_sd3_pipeline()
    pipe.transformer = torch.compile(pipe.transformer)
    with pytest.raises(sdtm_fx.RewriteError, match=text):
        sdtm_fx.rewrite(pipe, SD3.recipe())


def test_a_pipeline_without_such_a_model() -> None:
    with pytest.raises(
        sdtm_fx.RewriteError,
        match=r"is for FluxTransformer2DModel, and StableDiffusion3Pipeline has none \(.*transformer: SD3Transformer2D",
    ):
        sdtm_fx.rewrite(tiny_sd3_pipeline(), FLUX_DEV.recipe())


def test_something_that_is_no_model() -> None:
    with pytest.raises(
        sdtm_fx.RewriteError, match=r"cannot rewrite a dict; give a torch\.nn\.Module or a diffusers"
    ):
        sdtm_fx.rewrite({}, SD3.recipe())


@pytest.mark.parametrize("target", [SD3.model(), tiny_flux_pipeline()], ids=["model", "pipeline"])
def test_what_is_not_rewritten(target: Any) -> None:
    text = f"{type(target).__name__} is not rewritten; call sdtm_fx.rewrite"
    with pytest.raises(sdtm_fx.RewriteError, match=text):
        sdtm_fx.restore(target)
    with pytest.raises(sdtm_fx.RewriteError, match=text), sdtm_fx.steps(target, 4):
        pass


def test_steps_of_a_rewritten_model() -> None:
    model = sdtm_fx.rewrite(SD3.model(), SD3.recipe())
    with (
        pytest.raises(sdtm_fx.ClockError, match="found 0; accepted: an integer of at least 1"),
        sdtm_fx.steps(model, 0),
    ):
        pass
    with (
        sdtm_fx.steps(model, 4),
        pytest.raises(sdtm_fx.ClockError, match="do not nest"),
        sdtm_fx.steps(model, 4),
    ):
        pass
    with sdtm_fx.steps(model, 1) as clock:
        clock.advance()
        with pytest.raises(sdtm_fx.ClockError, match="all 1 steps"):
            model(**SD3.inputs())


def test_a_grid_that_is_none() -> None:
    model, inputs = FLUX_DEV.model(), FLUX_DEV.inputs()
    sdtm_fx.rewrite(model, FLUX_DEV.recipe())
    ids = inputs["img_ids"].clone()
    ids[0, 2] = 20
    with pytest.raises(sdtm_fx.PlanError, match="'img_ids' span 8 rows and 21 columns but hold 64 tokens"):
        run_steps(model, {**inputs, "img_ids": ids})
