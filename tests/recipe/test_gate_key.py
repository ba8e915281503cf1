"""The key `gate` of a recipe."""

from __future__ import annotations

import jsonschema
import pytest

from sdtm_fx.errors import RecipeError
from sdtm_fx.recipe import Recipe, json_schema


def test_it_is_on_unless_the_recipe_says_off(example: Recipe, example_text: str) -> None:
    assert example.gate == "auto"
    off = Recipe.from_yaml_text(f"{example_text}\ngate: off\n")
    assert off.gate == "off", "and YAML 1.2 reads off as a word"
    assert Recipe.from_yaml_text(off.to_yaml()) == off
    assert off == example.override(gate="off")


def test_recipes_that_say_nothing_keep_their_fingerprint(example: Recipe, example_text: str) -> None:
    assert Recipe.from_yaml_text(f"{example_text}\ngate: auto\n").fingerprint() == example.fingerprint()
    assert example.override(gate="off").fingerprint() != example.fingerprint()


@pytest.mark.parametrize(
    ("value", "message"),
    [
        ("on", "gate: found 'on'; accepted 'auto' or 'off'"),
        ("of", r"gate: found 'of'; accepted 'auto' or 'off' \(did you mean 'off'\?\)"),
        ("false", "gate: found false; accepted 'auto' or 'off'"),
        ("{auto: true}", "gate: found a mapping with keys auto; accepted 'auto' or 'off'"),
    ],
)
def test_anything_else_is_an_error(example_text: str, value: str, message: str) -> None:
    with pytest.raises(RecipeError, match=message):
        Recipe.from_yaml_text(f"{example_text}\ngate: {value}\n")


def test_editors_know_it(example: Recipe) -> None:
    validator = jsonschema.Draft202012Validator(json_schema())
    assert validator.is_valid({**example.to_data(), "gate": "off"})
    assert not validator.is_valid({**example.to_data(), "gate": "on"})
