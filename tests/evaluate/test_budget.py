"""Budgets: what is solved costs what it should, by the same count as `explain`, or says what can be reached."""

from __future__ import annotations

from typing import Any

import pytest
import torch

import sdtm_fx
from sdtm_fx.errors import RewriteError
from sdtm_fx.evaluate.budget import match_budget, solve
from sdtm_fx.evaluate.cost import CostWatch
from sdtm_fx.evaluate.match import BudgetError, Match
from sdtm_fx.evaluate.schedule_costs import Costs, measure_costs, probe_size
from sdtm_fx.evaluate.threshold import solve_threshold
from sdtm_fx.recipe import Recipe, load_recipe
from sdtm_fx.rewriting.rewriting import rewriting_of
from sdtm_fx.runtime.schedules import CallSize
from sdtm_fx.toy.pipeline import ToySD3Pipeline
from tests.evaluate.tiny import SIZE, SMALL, tiny_pipeline

PLAIN = {
    "stages.detail.method": {"name": "local_match"},
    "reuse": None,
    "keep_dense": {"first_steps": 1, "last_steps": 1, "every_steps": None},
}


def shipped(name: str, **changes: Any) -> Recipe:
    return load_recipe(name).override({**SMALL, **changes})


MERGING = shipped("sd3-medium-windows", **PLAIN)
CURVED = MERGING.override({"ratio": {"curve": "cosine", "start": 0.6, "end": 0.2, "levels": 4}})
CACHING = shipped("sd3-medium")


@pytest.fixture(scope="module")
def pipe() -> ToySD3Pipeline:
    return tiny_pipeline()


def costs_at(pipe: ToySD3Pipeline, recipe: Recipe, steps: int) -> Costs:
    return measure_costs(recipe, pipe, CallSize(steps, (16, 16), 2, 16))


@pytest.fixture(scope="module")
def merging(pipe: ToySD3Pipeline) -> Costs:
    return costs_at(pipe, MERGING, 28)


@pytest.fixture(scope="module")
def caching(pipe: ToySD3Pipeline) -> Costs:
    return costs_at(pipe, CACHING, 28)


def explained(pipe: ToySD3Pipeline, match: Match, steps: int) -> float:
    with sdtm_fx.rewritten(pipe, match.recipe):
        told = sdtm_fx.explain(pipe, steps=steps, grid=(16, 16), batch=2, text=16, quiet=True)
    return told.theoretical_speedup


@pytest.mark.parametrize(("recipe", "wanted"), [(MERGING, 2.2), (CURVED, 1.5)])
def test_a_ratio_is_scaled_until_the_budget_is_met(
    pipe: ToySD3Pipeline, merging: Costs, recipe: Recipe, wanted: float
) -> None:
    match = solve(recipe, merging, knob="ratio", speedup=wanted)
    assert match.close
    assert match.speedup == pytest.approx(wanted, rel=0.02)
    assert explained(pipe, match, 28) == pytest.approx(match.speedup, rel=1e-9)
    assert match.recipe.ratio.end / match.recipe.ratio.start == pytest.approx(
        recipe.ratio.end / recipe.ratio.start, abs=1e-3
    )


@pytest.mark.parametrize("wanted", [1.3, 1.5, 2.2])
def test_an_interval_spreads_dense_steps_until_the_budget_is_met(
    pipe: ToySD3Pipeline, caching: Costs, wanted: float
) -> None:
    match = solve(CACHING, caching, knob="interval", speedup=wanted)
    assert match.speedup == pytest.approx(wanted, rel=0.04)
    assert explained(pipe, match, 28) == pytest.approx(match.speedup, rel=1e-9)
    dense = [s for s in range(28) if caching.schedule(match.recipe).phase(s).stage is None]
    assert {0, 1, 27} <= set(dense), "the leading and trailing dense steps stay"
    assert match.recipe.keep_dense.every_steps == match.value


def test_leading_steps_are_added_until_no_more_is_saved_than_wanted(
    pipe: ToySD3Pipeline, caching: Costs
) -> None:
    recipe = CACHING.override({"keep_dense": {"first_steps": 2, "last_steps": 1, "every_steps": 3}})
    found = [solve(recipe, caching, knob="leading", speedup=wanted) for wanted in (1.3, 1.5, 2.2)]
    assert all(match.speedup == pytest.approx(match.wanted, rel=0.04) for match in found)
    assert all(explained(pipe, m, 28) == pytest.approx(m.speedup, rel=1e-9) for m in found)
    first = [match.recipe.keep_dense.first_steps for match in found]
    assert first == [match.value for match in found] == sorted(first, reverse=True)
    assert 2 < first[-1] < first[0] < 27
    assert {match.recipe.keep_dense.every_steps for match in found} == {3}
    with pytest.raises(
        BudgetError, match=r"knob 'leading': found a budget of 4x; accepted 1\.\d+x to 2\.\d+x"
    ):
        solve(recipe, caching, knob="leading", speedup=4.0)


def test_few_steps_have_few_settings_and_say_what_they_reach(pipe: ToySD3Pipeline) -> None:
    recipe = CACHING.override({"keep_dense": {"first_steps": 1, "last_steps": 0}})
    costs = costs_at(pipe, recipe, 4)
    found = [solve(recipe, costs, knob="interval", speedup=wanted) for wanted in (1.3, 1.5, 2.2)]
    assert not found[1].close
    assert all(f.speedup == pytest.approx(costs.speedup(f.recipe)) for f in found)
    skipped = [sum(costs.schedule(f.recipe).phase(s).stage is not None for s in range(4)) for f in found]
    assert skipped == sorted(skipped)
    assert skipped[0] == 1
    assert skipped[-1] == 2


def test_a_bare_recipe_is_measured_without_being_changed(pipe: ToySD3Pipeline, merging: Costs) -> None:
    assert rewriting_of(pipe.transformer) is None
    with sdtm_fx.rewritten(pipe, MERGING), pytest.raises(RewriteError, match="rewritten already; call"):
        measure_costs(MERGING, pipe, merging.size)
    assert merging.speedup(MERGING.override({"ratio.start": 0.0})) == 1.0


def test_the_size_comes_from_one_step_of_the_pipeline(pipe: ToySD3Pipeline) -> None:
    assert probe_size(pipe, MERGING, steps=9, height=12, width=32) == CallSize(9, (6, 16), 2, 16)
    assert probe_size(pipe, MERGING, steps=9, **SIZE, guidance_scale=1.0).batch == 1
    with pytest.raises(RewriteError, match="is for FluxTransformer2DModel, and ToySD3Pipeline has none"):
        probe_size(pipe, load_recipe("flux.1-dev-windows"), steps=9, **SIZE)


def test_a_pipeline_is_matched_in_one_call(pipe: ToySD3Pipeline) -> None:
    match = match_budget(MERGING, pipe, speedup=1.4, knob="ratio", steps=8, **SIZE)
    with sdtm_fx.rewritten(pipe, match.recipe), torch.no_grad():
        watch = CostWatch(pipe)
        with watch.calls() as calls:
            pipe(["", ""], num_inference_steps=8, output_type="latent", **SIZE)
        found = watch.cost(calls, 2).speedup
    assert found == pytest.approx(match.speedup, rel=0.01), "and what is really sampled costs so"


def curve(recipe: Recipe) -> float:
    return 1.0 + max(0.0, 0.9 - recipe.ratio.threshold)  # type: ignore[union-attr]


FULL = MERGING.override({"ratio": {"curve": "full"}})
STAR = MERGING.override(
    {"ratio": {"threshold": 0.5, "start": 0.7}, "stages.detail.method": {"name": "ssm", "age_weight": 0.0}}
)


def test_a_threshold_is_found_by_measuring() -> None:
    match = solve_threshold(STAR, curve, speedup=1.3)
    assert match.speedup == pytest.approx(1.3, rel=0.011)
    assert match.recipe.ratio == STAR.override({"ratio.threshold": match.value}).ratio


def test_a_threshold_really_samples(pipe: ToySD3Pipeline, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sdtm_fx.evaluate.threshold._CALIBRATIONS", 2)
    settings: dict[str, Any] = {"knob": "threshold", "steps": 3, "height": 16, "width": 16}
    match = match_budget(STAR, pipe, speedup=1.2, prompts=("",), **settings)
    assert match.speedup > 1.0
    with pytest.raises(BudgetError, match="found by sampling: found no prompts"):
        match_budget(STAR, pipe, speedup=1.2, **settings)


@pytest.mark.parametrize(
    ("recipe", "knob", "wanted", "message"),
    [
        (
            MERGING,
            "ratio",
            9.0,
            r"sd3-medium-windows: knob 'ratio': found a budget of 9x; accepted 1\.\d\dx to \d\.\d\dx,",
        ),
        (MERGING, "ratio", 0.9, r"found a budget of 0.9x; accepted a speedup above 1"),
        (MERGING, "interval", 1.3, r"knob 'interval': found no reuse; accepted a recipe whose dense steps"),
        (STAR, "ratio", 1.3, r"knob 'ratio': found a threshold; accepted a curve"),
        (
            FULL,
            "ratio",
            1.3,
            r"knob 'ratio': found curve 'full', which has no number to turn; accepted a curve",
        ),
        (STAR, "threshold", 1.3, r"knob 'threshold' is found by sampling; use match_budget"),
    ],
)
def test_what_cannot_be_reached(
    merging: Costs, recipe: Recipe, knob: Any, wanted: float, message: str
) -> None:
    with pytest.raises(BudgetError, match=message):
        solve(recipe, merging, knob=knob, speedup=wanted)


def test_what_a_cache_and_a_threshold_cannot_reach(caching: Costs) -> None:
    with pytest.raises(
        BudgetError, match="knob 'ratio': found no stage that merges; accepted knob 'interval'"
    ):
        solve(CACHING, caching, knob="ratio", speedup=1.3)
    with pytest.raises(BudgetError, match="knob 'threshold': found a ratio without one"):
        solve_threshold(MERGING, curve, speedup=1.3)
    with pytest.raises(BudgetError, match=r"accepted 1\.90x to 1\.90x, which is the reach within the bounds"):
        solve_threshold(STAR, curve, speedup=4.0)
    nothing = CACHING.override({"keep_dense": {"first_steps": 28, "every_steps": 2}})
    with pytest.raises(BudgetError, match="found no setting that saves anything at 28 steps; accepted more"):
        solve(nothing, caching, knob="interval", speedup=1.3)
