"""Compiled phases of a recipe with sites that the cost gate leaves out."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

import sdtm_fx
from sdtm_fx.cost.profile_cache import VARIABLE, save_profile
from sdtm_fx.runtime.schedules import CallSize
from tests.compiling.counting import FEW, Graphs, graph_breaks, no_new_graph, phases_of
from tests.rates import made_up
from tests.user.cases import SD3, all_equal, moving, run_steps, the_rewriting

pytestmark = pytest.mark.compile

STEPS = 10
STRUCTURES = 2
ROUNDING = 1e-4  # ahead-of-time kernels add in another order


@pytest.mark.parametrize("regional", [False, True], ids=["whole", "regional"])
def test_a_phase_without_some_sites_is_one_graph(
    regional: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(VARIABLE, str(tmp_path))
    for compiled in (False, True):
        save_profile(made_up(attention=1.0, launch=1.0, compiled=compiled))
    inputs = SD3.inputs()
    model = sdtm_fx.rewrite(SD3.model(), SD3.recipe(FEW))
    eager = run_steps(model, inputs, STEPS)
    sdtm_fx.compile(model, regional=regional, backend="eager")
    graphs = Graphs()
    assert all_equal(run_steps(model, inputs, STEPS), eager)
    assert graphs.made == phases_of(model, STEPS) * (STRUCTURES if regional else 1)
    assert not graph_breaks()
    decision = the_rewriting(model).runtime.gate(CallSize(STEPS, (8, 8), batch=2, text=5))
    assert decision is not None
    assert decision.profile.key.compiled
    assert {v.site for v in decision.verdicts if not v.kept} == {"ff"}
    with no_new_graph():
        assert all_equal(run_steps(model, inputs, STEPS), eager)


@pytest.mark.slow
def test_a_package_holds_what_the_gate_left(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(VARIABLE, str(tmp_path))
    save_profile(made_up(attention=1.0, launch=1.0, compiled=True))
    inputs = SD3.inputs()
    model = sdtm_fx.rewrite(SD3.model(), SD3.recipe(FEW))
    ungated = run_steps(model, inputs, STEPS)  # no measurement of eager code
    sdtm_fx.compile(model, backend="eager")
    gated = run_steps(model, inputs, STEPS)
    assert not all_equal(gated, ungated)
    size = sdtm_fx.Size(grid=(8, 8), batch=2, text=5, steps=STEPS, cfg_halves=1)
    loaded = sdtm_fx.load(sdtm_fx.export(model, tmp_path / "exported", size))
    with torch.no_grad(), loaded.steps() as clock:
        for step, expected in enumerate(gated):
            output = loaded(**moving(inputs, step, STEPS))[0]
            torch.testing.assert_close(output, expected, rtol=ROUNDING, atol=ROUNDING)
            clock.advance()
