"""Attention processors, backends and fused projections that change while a model is rewritten."""

from __future__ import annotations

from typing import Any

import pytest
from diffusers.models.attention_processor import JointAttnProcessor2_0

import sdtm_fx
from tests.user.cases import (
    FLUX_DEV,
    SD3,
    Case,
    all_equal,
    distance,
    run_steps,
    the_rewriting,
)

BOTH = pytest.mark.parametrize("case", [SD3, FLUX_DEV], ids=lambda case: case.name)
WHEN = pytest.mark.parametrize("when", ["before", "after"])

BOTH = pytest.mark.parametrize("case", [SD3, FLUX_DEV], ids=lambda case: case.name)


IDM = {"stages.*.method": {"name": "idm"}, "stages.structure.sites": ["ff"], "reuse": None}


def test_a_processor_that_is_swapped_while_rewritten_is_the_one_that_runs() -> None:
    class Louder(JointAttnProcessor2_0):
        def __call__(self, *args: Any, **kwargs: Any) -> Any:
            image, text = super().__call__(*args, **kwargs)
            return 2 * image, text

    for recipe in (SD3.recipe(), SD3.recipe(IDM)):  # IDM runs attention as a graph of its own
        model, fresh, inputs = SD3.model(), SD3.model(), SD3.inputs()
        sdtm_fx.rewrite(model, recipe)
        before = run_steps(model, inputs)
        model.transformer_blocks[0].attn.set_processor(Louder())
        fresh.transformer_blocks[0].attn.set_processor(Louder())
        sdtm_fx.rewrite(fresh, recipe)
        outputs = run_steps(model, inputs)
        assert all_equal(outputs, run_steps(fresh, inputs))
        assert not all_equal(outputs, before)


@pytest.mark.parametrize("changes", [{}, IDM], ids=["own", "idm"])
@BOTH
def test_fused_projections_after_the_rewrite(case: Case, changes: dict[str, Any]) -> None:
    model, inputs = case.model(), case.inputs()
    changes = {**changes, **({"stages.*.sites": ["ff"]} if changes else {})}
    sdtm_fx.rewrite(model, case.recipe(changes))
    before = run_steps(model, inputs)
    model.fuse_qkv_projections()
    assert distance(run_steps(model, inputs), before) < 1e-4
    model.unfuse_qkv_projections()
    assert all_equal(run_steps(model, inputs), before)


def test_an_attention_backend_set_after_the_rewrite_is_used() -> None:
    model, inputs = FLUX_DEV.model(), FLUX_DEV.inputs()
    sdtm_fx.rewrite(model, FLUX_DEV.recipe({**IDM, "stages.*.sites": ["ff"]}))
    before = run_steps(model, inputs)
    model.set_attention_backend("_native_math")
    assert distance(run_steps(model, inputs), before) < 1e-4
    latest = {id(p) for b in the_rewriting(model).bindings.values() for p in b.programs.values()}
    structures = [key for key, p in the_rewriting(model).cache.programs.items() if id(p) in latest]
    assert structures
    assert all("native_math" in str(key).lower() for key in structures)  # IDM runs attention as a graph
