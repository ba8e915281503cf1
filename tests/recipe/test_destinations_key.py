"""The key `plan.destinations_every` of a recipe."""

from __future__ import annotations

from typing import Any

import jsonschema
import pytest

from sdtm_fx.errors import RecipeError
from sdtm_fx.recipe import Recipe, json_schema

TOMA = {"name": "toma"}


def with_toma(example: Recipe, **plan: Any) -> Recipe:
    return example.override({"stages.*.method": TOMA, "plan": plan})


def test_it_may_be_any_multiple_of_the_plan_interval(example: Recipe) -> None:
    recipe = with_toma(example, every_steps=5, destinations_every=10)
    assert recipe.plan.destinations_every == 10
    assert recipe.plan.keeps_plans
    assert Recipe.from_yaml_text(recipe.to_yaml()) == recipe
    assert with_toma(example, destinations_every=3).plan.keeps_plans, "weights at every step"
    assert not with_toma(example, destinations_every=1).plan.keeps_plans


def test_recipes_that_say_nothing_keep_their_fingerprint(example: Recipe) -> None:
    said = example.override({"plan.destinations_every": None})
    assert said.fingerprint() == example.fingerprint()
    toma = with_toma(example)
    assert with_toma(example, destinations_every=2).fingerprint() != toma.fingerprint()


@pytest.mark.parametrize(
    ("plan", "message"),
    [
        (
            {"every_steps": 4, "destinations_every": 10},
            r"plan\.destinations_every: found 10 beside every_steps 4; accepted a multiple of 4: destinations change",
        ),
        (
            {"every_steps": 4, "destinations_every": 2},
            r"plan\.destinations_every: found 2 beside every_steps 4; accepted a multiple of 4",
        ),
        ({"destinations_every": 0}, r"plan\.destinations_every: found 0; accepted"),
        ({"destination_every": 10}, r"destination_every.*did you mean 'destinations_every'"),
    ],
)
def test_what_cannot_be_is_an_error(example: Recipe, plan: dict[str, int], message: str) -> None:
    with pytest.raises(RecipeError, match=message):
        with_toma(example, **plan)


def test_methods_without_destinations_of_their_own_have_no_interval_for_them(example: Recipe) -> None:
    name, method = example.stages[0].name, example.stages[0].method.name
    message = rf"plan\.destinations_every: found 10 with method {method} in stage '{name}', which has no destinations"
    with pytest.raises(RecipeError, match=f"{message} of its own; accepted .*: toma"):
        example.override({"plan.destinations_every": 10})
    mixed = {f"stages.{example.stages[0].name}.method": TOMA, "plan.destinations_every": 10}
    with pytest.raises(RecipeError, match=f"in stage '{example.stages[-1].name}'"):
        example.override(mixed)


def test_a_stage_that_merges_nothing_does_not_matter(example: Recipe) -> None:
    recipe = example.override(
        {
            "stages.*.method": TOMA,
            f"stages.{example.stages[-1].name}": {"method": {"name": "skip"}, "ratio": None},
            "plan.destinations_every": 10,
        }
    )
    assert recipe.plan.destinations_every == 10


def test_editors_know_it(example: Recipe) -> None:
    validator = jsonschema.Draft202012Validator(json_schema())
    data = with_toma(example, destinations_every=10).to_data()
    assert validator.is_valid(data)
    data["plan"]["destinations_every"] = 0
    assert not validator.is_valid(data)


def test_plans_that_no_stage_would_keep_are_an_error(example: Recipe) -> None:
    """Under a threshold every step makes a plan of its own."""
    stage = {"name": "all", "until": 1.0, "sites": ["ff"], "method": {"name": "ssm"}}
    threshold, constant = {"threshold": 0.8, "start": 0.5}, {"curve": "constant", "start": 0.3}
    data = {**example.to_data(), "stages": [stage], "ratio": threshold, "plan": {"every_steps": 2}}
    message = r"plan\.every_steps: found 2 where every stage that merges has a threshold, whose steps all make plans"
    with pytest.raises(
        RecipeError, match=f"{message}; accepted a ratio without a threshold in some stage, or 1"
    ):
        Recipe.from_mapping(data)
    fixed = [{**stage, "until": 0.5}, {**stage, "name": "late", "ratio": constant}]
    assert Recipe.from_mapping({**data, "stages": fixed}).plan.keeps_plans, "one of the stages keeps them"
