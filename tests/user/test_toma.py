"""`toma` in recipes on small SD3 and FLUX models: steps, intervals, halves, and compiled."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest
import torch

import sdtm_fx
from sdtm_fx.base_plan import Plan
from sdtm_fx.linear_plan import LinearPlan
from sdtm_fx.methods import TokenView, ToMA
from tests.user.cases import (
    DENSE,
    FLUX_ATTENTION,
    SD3,
    Case,
    all_equal,
    distance,
    moving,
    observed_inputs,
    run_plain,
    run_steps,
    the_rewriting,
)

TILE = {"name": "toma", "region": "tile", "tile": [2, 2]}
GLOBAL = {"name": "toma", "tile": [2, 2]}
STRIPE = {"name": "toma", "region": "stripe", "stripes": 4, "unmerge": "pseudo_inverse"}
FLAT: dict[str, Any] = {
    "ratio": {"curve": "constant", "start": 0.5},
    "keep_dense": {"first_steps": 1, "last_steps": 0, "every_steps": None},
    "reuse": None,
}
INTERVALS = {"plan.every_steps": 2, "plan.destinations_every": 4}
MODELS = pytest.mark.parametrize("case", [SD3, FLUX_ATTENTION], ids=lambda case: case.name)


def rules(method: dict[str, Any], **changes: Any) -> dict[str, Any]:
    return {**FLAT, "stages.*.method": method, **changes}


@contextmanager
def plans_made(patch: pytest.MonkeyPatch) -> Iterator[list[tuple[str, Plan]]]:
    """Every plan that is made inside, and how: chosen anew, or weighed for former destinations.

    The cost model makes plans too, of nothing but shapes.
    """
    made: list[tuple[str, Plan]] = []
    own, again = ToMA._plan, ToMA._replan

    def note(how: str, view: TokenView, plan: LinearPlan) -> LinearPlan:
        if type(view.metric) is torch.Tensor and not view.metric.is_meta:
            made.append((how, plan))
        return plan

    def plan(self: ToMA, view: TokenView, remove: int) -> LinearPlan:
        return note("chosen", view, own(self, view, remove))

    def replan(self: ToMA, view: TokenView, remove: int, former: Plan) -> LinearPlan:
        return note("weighed", view, again(self, view, remove, former))

    with patch.context() as context:
        context.setattr(ToMA, "_plan", plan)
        context.setattr(ToMA, "_replan", replan)
        yield made


@MODELS
@pytest.mark.parametrize("method", [TILE, GLOBAL, STRIPE], ids=["tile", "global", "stripe"])
def test_a_recipe_merges_by_it(case: Case, method: dict[str, Any]) -> None:
    model, inputs = case.model(), case.inputs()
    plain = run_plain(model, inputs, 4)
    sdtm_fx.rewrite(model, case.recipe(rules(method)))
    with observed_inputs(model, ".ff") as seen:
        outputs = run_steps(model, inputs, 4)
    assert {shape[1] for _, shape in seen} == {64, 32}
    assert torch.equal(outputs[0], plain[0]), "the first step is dense"
    assert all(bool(out.isfinite().all()) for out in outputs)
    assert 0 < distance(outputs[1:], plain[1:]) < distance(plain[1:], [torch.zeros(()) for _ in plain[1:]])
    assert all_equal(run_steps(model, inputs, 4), outputs)
    sdtm_fx.restore(model)
    assert all_equal(run_plain(model, inputs, 4), plain)


@MODELS
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=["fp32", "bf16"])
def test_ratio_zero_is_the_original_bit_for_bit(case: Case, dtype: torch.dtype) -> None:
    model, inputs = case.model(dtype), case.inputs(dtype=dtype)
    plain = run_plain(model, inputs, 4)
    sdtm_fx.rewrite(model, case.recipe({**rules(TILE), **DENSE}))
    assert all_equal(run_steps(model, inputs, 4), plain)


@MODELS
def test_half_precision_and_odd_grids_run(case: Case) -> None:
    model = case.model(torch.bfloat16)
    sdtm_fx.rewrite(model, case.recipe(rules(GLOBAL)))
    for grid in ((7, 9), (5, 4)):
        inputs = case.inputs(grid=grid, dtype=torch.bfloat16)
        outputs = run_steps(model, inputs, 3)
        assert all(out.dtype == torch.bfloat16 and bool(out.isfinite().all()) for out in outputs)


def test_one_plan_serves_the_batch_where_rotary_tables_ask_for_it(monkeypatch: pytest.MonkeyPatch) -> None:
    model, inputs = FLUX_ATTENTION.model(), FLUX_ATTENTION.inputs(batch=3)
    sdtm_fx.rewrite(model, FLUX_ATTENTION.recipe(rules(TILE)))
    with plans_made(monkeypatch) as made:
        run_steps(model, inputs, 2)
    assert {plan.positions.shape for _, plan in made} == {(1, 32)}


def test_guidance_halves_share_a_plan(monkeypatch: pytest.MonkeyPatch) -> None:
    model, inputs = SD3.model(), SD3.inputs(batch=4)
    sdtm_fx.rewrite(model, SD3.recipe(rules(TILE)))
    with plans_made(monkeypatch) as made, torch.no_grad(), sdtm_fx.steps(model, 2, cfg_halves=2) as clock:
        for step in range(2):
            model(**moving(inputs, step, 2))
            clock.advance()
    assert {plan.positions.shape[0] for _, plan in made} == {2}


# -- destinations and weights on their own intervals -----------------------------------------------------


ONE_STAGE = {"stages": [{"name": "all", "until": 1.0, "sites": ["attn", "ff"], "method": TILE}]}


def test_destinations_last_longer_than_weights(monkeypatch: pytest.MonkeyPatch) -> None:
    model, inputs = SD3.model(), SD3.inputs()
    sdtm_fx.rewrite(model, SD3.recipe().override({**FLAT, **ONE_STAGE, **INTERVALS, "plan.every_layers": 9}))
    with plans_made(monkeypatch) as made:
        run_steps(model, inputs, 9)
    # Step 0 is dense; a group of layers asks at steps 1, 3, 5 and 7.
    assert [how for how, _ in made] == ["chosen", "weighed", "chosen", "weighed"]
    plans = [plan for _, plan in made]
    assert torch.equal(plans[0].positions, plans[1].positions)
    each = torch.eye(64).expand(plans[0].positions.shape[0], -1, -1)
    assert not torch.equal(plans[0].merge(each), plans[1].merge(each))
    # A second generation starts afresh.
    with plans_made(monkeypatch) as again:
        run_steps(model, inputs, 9)
    assert [how for how, _ in again] == [how for how, _ in made]


def test_weights_may_be_made_at_every_step(monkeypatch: pytest.MonkeyPatch) -> None:
    model, inputs = SD3.model(), SD3.inputs()
    changes = {**FLAT, **ONE_STAGE, "plan.every_layers": 9, "plan.destinations_every": 3}
    sdtm_fx.rewrite(model, SD3.recipe().override(changes))
    with plans_made(monkeypatch) as made:
        run_steps(model, inputs, 6)
    assert [how for how, _ in made] == ["chosen", "weighed", "weighed", "chosen", "weighed"]


def test_a_plan_of_another_stage_has_no_destinations_to_keep(monkeypatch: pytest.MonkeyPatch) -> None:
    """A branch that lacks features refreshes in place of the step that should have chosen destinations."""
    model, inputs = SD3.model(), SD3.inputs()
    stages = [
        {**ONE_STAGE["stages"][0], "name": "first", "until": 0.5, "method": {**TILE, "tile": [4, 4]}},
        {**ONE_STAGE["stages"][0], "name": "second"},
    ]
    recipe = SD3.recipe().override(
        {**FLAT, "stages": stages, "plan.every_layers": 9, "plan.destinations_every": 9}
    )
    sdtm_fx.rewrite(model, recipe)
    runtime = the_rewriting(model).runtime
    with plans_made(monkeypatch) as made, torch.no_grad(), sdtm_fx.steps(model, 8) as clock:
        for step in range(8):
            if step != 4:  # the first of the second stage is left out
                model(**moving(inputs, step, 8))
            clock.advance()
    assert runtime.schedule(8, (8, 8), 5).phase(5).fresh_destinations is False
    assert [how for how, _ in made] == ["chosen", "weighed", "weighed", "chosen", "weighed", "weighed"]


STAGGERED = {"layers": [{"match": "transformer_blocks.1", "scale": 0.5}]}


def test_blocks_that_remove_less_keep_destinations_of_their_own(monkeypatch: pytest.MonkeyPatch) -> None:
    model, inputs = SD3.model(), SD3.inputs()
    sdtm_fx.rewrite(model, SD3.recipe().override({**FLAT, **ONE_STAGE, **INTERVALS, **STAGGERED}))
    with plans_made(monkeypatch) as made:
        run_steps(model, inputs, 6)
    # Steps 1, 3 and 5 make plans; the second block keeps 48 tokens where the others keep 32.
    kept = [(how, plan.kept) for how, plan in made if plan.kept == 48]
    assert kept == [("chosen", 48), ("weighed", 48), ("chosen", 48)]
    assert {plan.kept for _, plan in made} == {32, 48}


def test_explain_tells_the_phases_apart() -> None:
    model = SD3.model()
    sdtm_fx.rewrite(model, SD3.recipe().override({**FLAT, **ONE_STAGE, **INTERVALS}))
    report = sdtm_fx.explain(model, steps=9, grid=(8, 8), text=5, quiet=True)
    labels = {phase.label: phase for phase in report.phases}
    assert set(labels) == {"dense", "all", "all, plan kept", "all, destinations kept"}
    kept, weighed, chosen = (
        labels[name].macs.total for name in ("all, plan kept", "all, destinations kept", "all")
    )
    assert kept < weighed < chosen
    assert len({labels[name].macs.linear for name in labels if name != "dense"}) == 1


def test_recorded_plans_say_where_tokens_go() -> None:
    model, inputs = SD3.model(), SD3.inputs()
    sdtm_fx.rewrite(model, SD3.recipe(rules(TILE)))
    with sdtm_fx.record_plans(model) as record:
        run_steps(model, inputs, 2)
    site = record.at(action="merged")[0]
    assert site.kept == 32
    assert site.assign is not None
    assert site.positions is not None
    assert site.assign.shape == (2, 64)
    assert site.positions.shape == (2, 32)
    assert int(site.assign.max()) < 32


# -- compiled --------------------------------------------------------------------------------------------


@pytest.mark.compile
@pytest.mark.parametrize(
    ("case", "regional", "changes"),
    [(SD3, True, {}), (SD3, True, STAGGERED), (SD3, False, STAGGERED), (FLUX_ATTENTION, False, {})],
    ids=["sd3 regional", "staggered regional", "staggered whole", "flux whole"],
)
def test_every_phase_is_one_graph(case: Case, regional: bool, changes: dict[str, Any]) -> None:
    torch._dynamo.reset()
    torch._dynamo.utils.counters.clear()
    model, inputs = case.model(), case.inputs()
    sites = list(case.recipe().stages[0].sites)
    stages = [{"name": "all", "until": 1.0, "sites": sites, "method": TILE}]
    sdtm_fx.rewrite(model, case.recipe().override({**FLAT, **INTERVALS, **changes, "stages": stages}))
    eager = run_steps(model, inputs, 6)
    kinds = {(p.stage, p.fresh_plan, p.fresh_destinations) for p in schedule_of(model, 6)}
    assert len(kinds) == 4, "dense, chosen, weighed and kept"
    sdtm_fx.compile(model, regional=regional, backend="eager")
    assert all_equal(run_steps(model, inputs, 6), eager)
    assert not torch._dynamo.utils.counters["graph_break"]
    places = [t.data_ptr() for t in kept_tensors(model)]
    assert places
    with torch._dynamo.config.patch(error_on_recompile=True):
        assert all_equal(run_steps(model, inputs, 6), eager)
    assert [t.data_ptr() for t in kept_tensors(model)] == places


def schedule_of(model: torch.nn.Module, steps: int) -> list[Any]:
    schedule = the_rewriting(model).runtime.schedule(steps, (8, 8), 5)
    return [schedule.phase(step) for step in range(steps)]


def kept_tensors(model: torch.nn.Module) -> list[torch.Tensor]:
    (branch,) = the_rewriting(model).runtime.state.branches.values()
    return [t for plans in branch.laid_out.values() for plan in plans.values() for t in plan.tensors()]


@pytest.mark.compile
def test_the_pseudo_inverse_compiles_with_features() -> None:
    torch._dynamo.reset()
    model, inputs = SD3.model(), SD3.inputs()
    reuse = {"reuse": {"order": 1, "weight": 0.5}, "keep_dense.every_steps": 3}
    sdtm_fx.rewrite(model, SD3.recipe({**rules(STRIPE), **reuse}))
    eager = run_steps(model, inputs, 5)
    sdtm_fx.compile(model, regional=True, backend="eager")
    assert all_equal(run_steps(model, inputs, 5), eager)


@pytest.mark.compile
@pytest.mark.slow
def test_inductor_compiles_a_model_that_merges_by_it() -> None:
    torch._dynamo.reset()
    model, inputs = SD3.model(), SD3.inputs()
    sdtm_fx.rewrite(model, SD3.recipe(rules({**TILE, "temperature": 0.1}, **{"plan.share": []})))
    eager = run_steps(model, inputs, 3)
    sdtm_fx.compile(model, regional=True)
    torch.testing.assert_close(run_steps(model, inputs, 3), eager, rtol=1e-3, atol=1e-3)
