"""`keep_dense.steps`: dense steps by number, for recipes that are meant for one number of steps."""

from __future__ import annotations

from typing import Any

import pytest

from sdtm_fx.errors import RecipeError, ScheduleError
from sdtm_fx.recipe import Recipe, load_recipe
from sdtm_fx.schedule import build_schedule
from sdtm_fx.step_counts import dense_steps


def recipe(steps: list[int], **keep: Any) -> Recipe:
    counted = {"first_steps": 0, "last_steps": 0, "every_steps": None, "steps": steps, **keep}
    return load_recipe("toy-sd3-windows").override(keep_dense=counted)


def test_named_steps_are_dense_and_no_others() -> None:
    kept = recipe([0, 1, 4])
    assert dense_steps(kept, 8) == {0, 1, 4}
    schedule = build_schedule(kept, steps=8, grid=(32, 32))
    assert [step for step in range(8) if schedule.phase(step).stage is None] == [0, 1, 4]


def test_they_join_the_leading_spread_and_trailing_ones() -> None:
    assert dense_steps(recipe([5], first_steps=2, last_steps=1, every_steps=4), 10) == {0, 1, 4, 5, 8, 9}


def test_saying_nothing_changes_no_fingerprint() -> None:
    plain = load_recipe("toy-sd3-windows")
    assert plain.override({"keep_dense.steps": []}).fingerprint() == plain.fingerprint()
    assert plain.override({"keep_dense.steps": [3]}).fingerprint() != plain.fingerprint()


def test_a_step_that_there_is_not() -> None:
    with pytest.raises(
        ScheduleError,
        match=r"toy-sd3.*: keep_dense\.steps: found step 9; accepted 0 to 7, this generation has 8 steps",
    ):
        build_schedule(recipe([0, 1, 9]), steps=8, grid=(32, 32))


def test_a_negative_step() -> None:
    with pytest.raises(RecipeError, match=r"keep_dense\.steps\[0\]: found -1; accepted"):
        recipe([-1])


def test_a_line_needs_two_of_them() -> None:
    recipe([0, 2])
    with pytest.raises(RecipeError, match="order 1 with 0 dense first steps and no every_steps"):
        recipe([0])


def test_the_first_forecast_needs_one_before_it() -> None:
    with pytest.raises(
        ScheduleError, match="reuses features at step 0 of 8, but no step before it stores any"
    ):
        build_schedule(recipe([2, 3]), steps=8, grid=(32, 32))


def test_importance_is_read_off_a_named_step() -> None:
    importance = recipe([0, 1]).override({"stages.*.method": {"name": "importance"}, "reuse": None})
    assert importance.override({"keep_dense.steps": [0]}).keep_dense.steps == (0,)
    with pytest.raises(RecipeError, match="found 0 with method importance"):
        importance.override({"keep_dense.steps": [1, 2]})
