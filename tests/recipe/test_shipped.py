"""Every recipe that is shipped: it loads, is what its name says, round-trips, and suits its models."""

from __future__ import annotations

import importlib.resources
import inspect

import diffusers
import jsonschema
import pytest
import yaml

from sdtm_fx.recipe import Recipe, ShapesInput, json_schema, list_recipes, load_recipe
from tests.compat.classes import skip_where_absent

NAMES = list_recipes()


def written(name: str) -> str:
    return importlib.resources.files("sdtm_fx.recipes").joinpath(f"{name}.yaml").read_text()


def test_the_list() -> None:
    assert set(NAMES) >= {
        "flux.1-dev",
        "flux.1-dev-attention",
        "flux.1-schnell",
        "paper/flux.1-dev",
        "paper/sd3-medium",
        "paper/sd3-medium-released",
        "sd3-medium",
        "sd3.5-large",
        "sd3.5-large-turbo",
        "sd3.5-medium",
        "sdxl",
        "toy-flux",
        "toy-sd3",
    }
    assert list(NAMES) == sorted(NAMES)


@pytest.mark.parametrize("name", NAMES)
def test_loads_and_round_trips(name: str) -> None:
    recipe = load_recipe(name)
    assert recipe.name == name
    again = Recipe.from_yaml_text(recipe.to_yaml())
    assert again == recipe
    assert again.fingerprint() == recipe.fingerprint() == Recipe.named(name).fingerprint()


def test_no_two_are_the_same() -> None:
    assert len({load_recipe(name).fingerprint() for name in NAMES}) == len(NAMES)


@pytest.fixture(scope="module")
def validator() -> jsonschema.Draft202012Validator:
    return jsonschema.Draft202012Validator(json_schema())


@pytest.mark.parametrize("name", NAMES)
def test_editors_accept_what_is_written(name: str, validator: jsonschema.Draft202012Validator) -> None:
    validator.validate(yaml.safe_load(written(name)))
    validator.validate(load_recipe(name).to_data())


@pytest.mark.parametrize("name", NAMES)
def test_the_models_exist_and_take_the_inputs(name: str) -> None:
    skip_where_absent(name)
    recipe = load_recipe(name)
    for model in recipe.model:
        named = {
            name.partition(".")[0]
            for name, spec in recipe.inputs.items()
            if isinstance(spec, ShapesInput) or spec.before is None
        }
        assert named <= set(inspect.signature(getattr(diffusers, model).forward).parameters)


def test_released_settings() -> None:
    recipe = load_recipe("paper/sd3-medium-released")
    assert (recipe.ratio.start, recipe.ratio.end) == (0.5, 0.1)
    assert recipe.reuse is not None
    assert (recipe.reuse.order, recipe.reuse.weight, recipe.keep_dense.every_steps) == (0, 0.1, 3)
    assert [stage.method.name for stage in recipe.stages] == ["ssm", "fidm"]
    dense_by_multiple = [step for step in range(50) if step % 3 == 0]
    assert dense_by_multiple[0] == 0
    assert recipe.stages[0].until * 50 == 21, "steps 0 to 20"
