from __future__ import annotations

from typing import Any

import jsonschema
import pytest

from sdtm_fx.recipe import Recipe, json_schema

HEAD = {"version": 1, "name": "child", "extends": "sd3-medium-merge"}


@pytest.fixture(scope="module")
def validator() -> jsonschema.Draft202012Validator:
    schema = json_schema()
    jsonschema.Draft202012Validator.check_schema(schema)
    return jsonschema.Draft202012Validator(schema)


def test_accepts_the_example(validator: jsonschema.Draft202012Validator, example: Recipe) -> None:
    assert validator.is_valid(example.to_data())


@pytest.mark.parametrize(
    "part",
    [
        {},
        {"ratio": {"start": 0.5}},
        {"ratio": {"curve": "constant", "start": 0.5}},
        {"sites": {"*": {"expect": None}}},
        {"stages": {"detail": {"method": {"name": "idm"}}}},
        {"reuse": None},
        {"reuse": {"order": 0}},
        {"tokens": {"grid": {"patch": 4}}},
    ],
)
def test_a_recipe_that_extends_may_be_partial(
    validator: jsonschema.Draft202012Validator, part: dict[str, Any]
) -> None:
    document = {**HEAD, **part}
    assert validator.is_valid(document)
    assert Recipe.from_mapping(document).name == "child", "and the loader agrees"
    del document["extends"]
    assert not validator.is_valid(document), "without a base it is not whole"


def test_spans_of_the_base_are_changed_by_name(validator: jsonschema.Draft202012Validator) -> None:
    document = {**HEAD, "extends": "baselines/at-edm-sd3-medium", "spans": {"middle": {"last": -1}}}
    assert validator.is_valid(document)
    assert [span.last for span in Recipe.from_mapping(document).spans][1] == -1, "and the loader agrees"


@pytest.mark.parametrize(
    "part",
    [
        {"ratoi": {}},
        {"ratio": {"start": 2}},
        {"ratio": {"strat": 0.5}},
        {"reuse": {"order": 3}},
        {"sites": [{"id": "a"}]},
        {"sites": {"ff": {"expct": 1}}},
        {"stages": {"detail": {"until": "1"}}},
        {"spans": {"block": {"frist": 1}}},
        {"extends": 3},
    ],
)
def test_a_recipe_that_extends_is_still_checked(
    validator: jsonschema.Draft202012Validator, part: dict[str, Any]
) -> None:
    assert not validator.is_valid({**HEAD, **part})


def test_the_name_of_a_method_is_required(
    validator: jsonschema.Draft202012Validator, example: Recipe
) -> None:
    data = example.to_data()
    data["stages"][0]["method"].pop("name")
    assert not validator.is_valid(data)


def test_every_field_is_described() -> None:
    for name, definition in json_schema()["$defs"].items():
        for key, field in definition.get("properties", {}).items():
            if (
                "name" not in definition["properties"] or name == "Stage"
            ):  # methods describe options in docstrings
                assert field.get("description"), f"{name}.{key}"
