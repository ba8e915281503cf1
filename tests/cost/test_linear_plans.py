"""The cost of plans that are matrices: making them, weighing them anew, and multiplying by them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensorMode

import sdtm_fx
from sdtm_fx.cost.counter import MacCounter, Macs
from sdtm_fx.cost.effort import EffortCounter
from sdtm_fx.cost.planning import plan_cost, plan_effort, plan_macs
from sdtm_fx.cost.profile_cache import VARIABLE, save_profile
from sdtm_fx.methods import SSM, Skip, TokenView, ToMA
from sdtm_fx.phase import Phase
from tests.rates import FREE, made_up
from tests.user.cases import FLUX_ATTENTION, SD3, Case, moving, observed_inputs, run_steps, the_rewriting

GRID, TOKENS, WIDTH = (8, 8), 64, 16
TILE, GLOBAL = ToMA(region="tile"), ToMA()


def test_a_plan_costs_what_its_products_and_scans_do() -> None:
    # 4 regions of 16 tokens, 8 destinations each: similarities, weights, and 8 scans of the pairs of a region.
    cost = plan_cost(TILE, GRID, 5, WIDTH, 32)
    regions, size, kept = 4, 16, 8
    weights = regions * kept * size * WIDTH
    assert cost.made == Macs(0.0, regions * size * size * WIDTH + weights + kept * regions * size * size)
    assert cost.weighed == Macs(0.0, weights)
    assert cost.per_channel == regions * kept * size
    assert plan_macs(TILE, GRID, 5, WIDTH, 32) == cost.made


def test_merging_over_the_whole_grid_costs_as_many_regions_more() -> None:
    tile, whole = (plan_cost(method, GRID, 5, WIDTH, 32) for method in (TILE, GLOBAL))
    assert whole.per_channel == 32 * TOKENS == 4 * tile.per_channel
    assert whole.weighed == tile.weighed * 4


def test_a_pseudo_inverse_costs_eigenvalues_and_two_products() -> None:
    plain, inverse = (
        plan_cost(ToMA(region="tile", unmerge=way), GRID, 5, WIDTH, 32)
        for way in ("transpose", "pseudo_inverse")
    )
    more = inverse.weighed.total - plain.weighed.total
    assert more == 4 * (8 * 8 * 16 + 5.5 * 8**3 + 8 * 8 * 16)
    assert inverse.per_channel == plain.per_channel


def test_methods_that_assign_move_without_products() -> None:
    assert plan_cost(SSM(), GRID, 5, WIDTH, 12).per_channel == 0
    assert plan_cost(SSM(), GRID, 5, WIDTH, 12).weighed == plan_cost(SSM(), GRID, 5, WIDTH, 12).made
    nothing = plan_cost(Skip(), GRID, 5, WIDTH, TOKENS)
    assert (nothing.made, nothing.weighed, nothing.per_channel) == (Macs(), Macs(), 0)


def test_the_effort_of_weighing_anew_is_less_than_that_of_choosing() -> None:
    model = SD3.model()
    sdtm_fx.rewrite(model, recipe_of(SD3, {"name": "toma", "region": "tile", "tile": [2, 2]}))
    rules = the_rewriting(model).recipe
    chosen, weighed = (
        plan_effort(rules, 0, GRID, 5, WIDTH, 32, 2, torch.float32, keep) for keep in (False, True)
    )
    assert 0 < weighed.attention < chosen.attention
    assert 0 < weighed.launches < chosen.launches
    # One plan for both guidance halves.
    assert weighed.attention == plan_cost(rules.stages[0].method, GRID, 5, WIDTH, 32).weighed.total


def test_fake_tensors_count_as_real_ones() -> None:
    method = ToMA(region="tile", tile=(2, 2), unmerge="pseudo_inverse")

    def run() -> Any:
        counter = EffortCounter()
        with torch.no_grad(), counter.counting():
            plan = method.plan(TokenView(torch.ones(1, TOKENS, 8), GRID), 20)
            plan.unmerge(plan.merge(torch.zeros(1, TOKENS, 8)))
        return counter.effort

    real = run()
    with FakeTensorMode():
        fake = run()
    assert (fake.attention, fake.linear) == (real.attention, real.linear)
    assert real.attention > 0


@pytest.mark.parametrize(("attention", "merged"), [(FREE, {64, 32}), (1e-3, {64})], ids=["free", "costly"])
def test_the_gate_weighs_what_merging_multiplies(
    attention: float, merged: set[int], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Where only products of merging cost time, feed-forward layers alone do not pay for them."""
    monkeypatch.setenv(VARIABLE, str(tmp_path))
    save_profile(made_up(linear=1.0, attention=attention))
    recipe = recipe_of(SD3, {"name": "toma", "tile": [2, 2]})
    dense_first = {"keep_dense": {"first_steps": 1, "last_steps": 0, "every_steps": None}}
    model = SD3.model()
    sdtm_fx.rewrite(model, recipe.override({"stages.all.sites": ["ff"], **dense_first}))
    with observed_inputs(model, ".ff") as seen:
        run_steps(model, SD3.inputs(), 4)
    assert {shape[1] for _, shape in seen} == merged


def recipe_of(case: Case, method: dict[str, Any]) -> sdtm_fx.Recipe:
    changes: dict[str, Any] = {
        "ratio": {"curve": "constant", "start": 0.5},
        "keep_dense": {"first_steps": 0, "last_steps": 0, "every_steps": None},
        "reuse": None,
        "plan.every_steps": 2,
        "plan.destinations_every": 4,
        "stages": [
            {"name": "all", "until": 1.0, "sites": list(case.recipe().stages[0].sites), "method": method}
        ],
    }
    return case.recipe().override(changes)


@pytest.mark.parametrize(
    ("case", "method"),
    [
        (SD3, {"name": "toma", "region": "tile", "tile": [2, 2]}),
        (SD3, {"name": "toma", "tile": [2, 3], "unmerge": "pseudo_inverse"}),
        (FLUX_ATTENTION, {"name": "toma", "tile": [2, 2]}),
    ],
    ids=["sd3 tile", "sd3 inverse", "flux global"],
)
def test_the_closed_form_is_a_direct_count_of_every_phase(case: Case, method: dict[str, Any]) -> None:
    """At a size that nothing was measured at: plans made, weighed anew, and taken over."""
    model, inputs, grid = case.model(), case.inputs(grid=(6, 8)), (6, 8)
    recipe = recipe_of(case, method)
    sdtm_fx.rewrite(model, recipe)
    report = sdtm_fx.explain(model, steps=4, grid=grid, batch=2, text=5, quiet=True)
    schedule = the_rewriting(model).runtime.schedule(4, grid, 5, 2)
    with torch.no_grad(), sdtm_fx.steps(model, 4, cfg_halves=1) as clock:
        for step in range(4):
            with MacCounter() as counter:
                model(**moving(inputs, step, 4))
            phase: Phase = schedule.phase(step)
            chooses = phase.fresh_plan and phase.fresh_destinations
            rows = 1 if "batch" in recipe.plan.share else 2
            plans = len(the_rewriting(model).runtime.groups) * rows * chooses
            scanned = plans * recipe.stages[0].method.search_macs(grid, phase.remove)
            said = report.phases[schedule.phase_of_step[step]].macs
            assert said.linear == pytest.approx(counter.macs.linear, rel=1e-9)
            assert said.total == pytest.approx(counter.macs.total + scanned, rel=1e-6)
            clock.advance()
