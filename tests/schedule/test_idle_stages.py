"""Stages that a generation never runs: what is said of them."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from sdtm_fx.idle_stages import NoOps, gated_away, idle_stages, ranges, untold
from sdtm_fx.recipe.schema import Recipe
from sdtm_fx.runtime.refreshes import add_refreshes
from sdtm_fx.schedule import build_schedule
from tests.schedule.recipes import MATCH, SKIP, SSM, cosine, make, stage

REUSE = {"order": 1, "weight": 0.1}
ONE = [stage("all", 1.0, SSM)]


def said(recipe: Recipe, steps: int, grid: tuple[int, int] = (64, 64)) -> tuple[str, ...]:
    return idle_stages(recipe, build_schedule(recipe, steps=steps, grid=grid))


def constant(ratio: float) -> dict[str, Any]:
    return {"curve": "constant", "start": ratio}


@pytest.mark.parametrize(
    ("changes", "steps", "expected"),
    [
        (
            {"stages": [stage("structure", 0.2, SSM), stage("detail", 1.0, SKIP)], "reuse": REUSE,
             "keep_dense": {"first_steps": 2, "last_steps": 1, "every_steps": 3}},
            8,
            "test: stage 'structure' runs in none of the 8 steps: keep_dense keeps all of its own, 0-1",
        ),
        (
            {"keep_dense": {"first_steps": 0, "last_steps": 0, "steps": [3, 4, 6, 7, 5]}},
            8,
            "test: stage 'detail' runs in none of the 8 steps: keep_dense keeps all of its own, 3-7",
        ),
        (
            {"stages": [stage("structure", 0.2, SSM), stage("detail", 1.0, MATCH)],
             "keep_dense": {"first_steps": 0, "last_steps": 0}},
            2,
            "test: stage 'structure' runs in none of the 2 steps: no step falls between 0 and 0.2 of them",
        ),
        (
            {"stages": [stage("early", 0.5, SSM), stage("between", 0.6, MATCH), stage("late", 1.0, SSM)],
             "keep_dense": {"first_steps": 0, "last_steps": 0}},
            4,
            "test: stage 'between' runs in none of the 4 steps: no step falls between 0.5 and 0.6 of them",
        ),
        (
            {"stages": ONE, "ratio": constant(0.0001)},
            8,
            "test: stage 'all' runs in none of the 8 steps: a ratio of at most 0.0001 removes no token of 4096",
        ),
    ],
)  # fmt: skip
def test_what_is_said(changes: dict[str, Any], steps: int, expected: str) -> None:
    assert said(make(**changes), steps) == (expected,)


def test_a_recipe_for_few_steps_is_named_where_there_is_one() -> None:
    (one,) = said(Recipe.named("sd3-medium-windows"), 8)
    assert one.endswith("keep_dense keeps all of its own, 0-1 (for few steps there is sd3-medium-few)")


@pytest.mark.parametrize(
    ("recipe", "steps"),
    [
        (make(), 28),
        (Recipe.named("sd3-medium-windows"), 28),
        (Recipe.named("sd3-medium-few"), 4),
        (Recipe.named("paper/sd3-medium"), 28),
        (Recipe.named("sd3-medium"), 8),  # the stage behind does the same
        (make(stages=ONE, ratio=constant(0.0)), 8),  # dense on purpose
        (make(stages=ONE, ratio={"threshold": 0.9, "start": 0.7, "levels": 2}), 8),  # dense if measured so
    ],
)
def test_nothing_is_said_of_what_runs_or_is_dense_on_purpose(recipe: Recipe, steps: int) -> None:
    assert said(recipe, steps) == ()


@pytest.mark.parametrize(
    ("method", "why"),
    [
        (SKIP, "all of its own, 3, store the features that it reads"),
        (
            MATCH,
            "a ratio of at most 0.5 removes no token of 4096, or all of its own, 3, store the features that it reads",
        ),
    ],
)
def test_a_stage_whose_only_step_stores_its_features(method: dict[str, Any], why: str) -> None:
    recipe = make(
        stages=[stage("early", 0.75, SSM), {**stage("late", 1.0, method), "sites": ["ff"]}],
        ratio=constant(0.5),
        reuse={"order": 0, "weight": 0.1},
        keep_dense={"first_steps": 1, "last_steps": 0},
    )
    refreshed = add_refreshes(build_schedule(recipe, steps=4, grid=(64, 64)), lambda served, stage: False)
    assert idle_stages(recipe, refreshed) == (f"test: stage 'late' runs in none of the 4 steps: {why}",)


def test_a_gate_that_leaves_nothing_is_told_apart_from_one_that_leaves_something() -> None:
    recipe = make(ratio=cosine(levels=1))
    asked = build_schedule(recipe, steps=8, grid=(64, 64))
    dense = next(i for i, phase in enumerate(asked.phases) if phase.stage is None)
    emptied = replace(asked, phase_of_step=(dense,) * 8)
    one = gated_away(recipe, asked, emptied)
    assert one is not None
    assert one.startswith(
        "test: every one of the 8 steps is dense: the cost gate found that merging costs more"
    )
    assert gated_away(recipe, asked, asked) is None
    assert gated_away(recipe, emptied, emptied) is None  # the recipe asked for nothing


def test_points_of_a_search_are_not_told_of(caplog: pytest.LogCaptureFixture) -> None:
    recipe = make(stages=[stage("early", 0.5, SSM), stage("late", 1.0, MATCH)], keep_dense={"first_steps": 2})
    schedule = build_schedule(recipe, steps=4, grid=(8, 8))
    with untold():
        NoOps().warn(recipe, schedule, None)
    assert not caplog.records
    NoOps().warn(recipe, schedule, None)
    assert "stage 'early' runs in none of the 4 steps" in caplog.text


@pytest.mark.parametrize(
    ("steps", "text"), [((), ""), ((3,), "3"), ((0, 1, 2, 5), "0-2, 5"), ((1, 3, 4), "1, 3-4")]
)
def test_ranges(steps: tuple[int, ...], text: str) -> None:
    assert ranges(steps) == text
