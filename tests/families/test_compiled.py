"""Families compiled without a graph break, where diffusers' own model compiles so."""

from __future__ import annotations

import sdtm_fx
from tests.compiling.counting import graph_breaks
from tests.families.cases import FamilyCase, run
from tests.user.cases import all_equal


def test_a_rewritten_model_compiles_without_a_graph_break(case: FamilyCase) -> None:
    model, inputs = case.model(), case.call(2, (8, 8))
    sdtm_fx.rewrite(model, case.recipe(0.5))
    eager = run(case, model, inputs, 2)
    sdtm_fx.compile(model, backend="eager", fullgraph=True)
    assert all_equal(run(case, model, inputs, 2), eager)
    assert not graph_breaks()
