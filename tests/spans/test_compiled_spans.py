"""Spans in compiled models: one graph per phase, and the same numbers."""

from __future__ import annotations

from typing import Any

import pytest
import torch

import sdtm_fx
from sdtm_fx.errors import PlanError
from tests.compiling.conftest import _fresh_compiler as _fresh_compiler
from tests.compiling.counting import Graphs, graph_breaks, no_new_graph, phases_of
from tests.spans.cases import FLUX_SPAN, SPAN, TOKENS, TOMA, flux, recipe, sd3
from tests.user.cases import FLUX_DEV, SD3, all_equal, run_steps

pytestmark = pytest.mark.compile

AT_EDM = {"name": "at_edm", "iterations": 2, "probe_queries": 16}
# A span of its own for every structure of block and place in the span.
FORMS: dict[str, tuple[Any, int]] = {
    "sd3": ((sd3, SD3, {**SPAN, "first": 0, "last": -1}, {}), 3),
    "pruned": ((sd3, SD3, {**SPAN, "first": 0, "last": -1, "enter": "end"}, {"method": AT_EDM}), 3),
    "once per block": (
        (
            sd3,
            SD3,
            {**SPAN, "first": "transformer_blocks.*", "last": "transformer_blocks.*"},
            {"method": TOMA},
        ),
        1,
    ),
    "flux": ((flux, FLUX_DEV, {**FLUX_SPAN, "first": 0, "last": -1}, {}), 4),
}


@pytest.mark.parametrize("regional", [False, True], ids=["whole", "regional"])
@pytest.mark.parametrize("name", FORMS)
def test_spans_are_compiled(name: str, regional: bool) -> None:
    (make, case, span, changes), _ = FORMS[name]
    model, inputs = make(), case.inputs()
    sdtm_fx.rewrite(model, recipe(case, span, **changes))
    eager = run_steps(model, inputs, 4)
    sdtm_fx.compile(model, regional=regional, backend="eager")
    graphs = Graphs()
    assert all_equal(run_steps(model, inputs, 4), eager)
    assert not graph_breaks()
    if not regional:
        assert graphs.made == phases_of(model, 4)
    with no_new_graph():
        assert all_equal(run_steps(model, inputs, 4), eager)


def test_blocks_in_equal_places_share_a_graph() -> None:
    made = []
    for layers in (4, 6):
        torch._dynamo.reset()
        model = sd3(layers)
        sdtm_fx.rewrite(model, recipe(SD3, {**SPAN, "first": 0, "last": -1}))
        sdtm_fx.compile(model, regional=True, backend="eager")
        graphs = Graphs()
        run_steps(model, SD3.inputs(), 4)
        made.append(graphs.made)
    assert made[0] == made[1]


def test_residuals_between_blocks_are_named_while_compiling() -> None:
    model, inputs = sd3(), SD3.inputs()
    extra = {"block_controlnet_hidden_states": [torch.full((2, TOKENS, 16), 0.1)] * 4}
    sdtm_fx.rewrite(model, recipe(SD3, SPAN))
    sdtm_fx.compile(model, backend="eager")
    with pytest.raises(PlanError, match="span 'body' keeps 34 of 64 image tokens between its blocks"):
        run_steps(model, {**inputs, **extra}, 3)
