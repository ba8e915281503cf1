"""From plain data to a checked model, or to errors that name file, line and key path."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any, TypeVar

from pydantic import BaseModel, ValidationError
from pydantic_core import ErrorDetails

from sdtm_fx.errors import nearest
from sdtm_fx.recipe.describe import Described, holds, item
from sdtm_fx.recipe.problems import KeyPath, Problem, misfit, recipe_error, show_choices, show_value
from sdtm_fx.recipe.yaml_source import Source

Model = TypeVar("Model", bound=BaseModel)

_UNKNOWN_KEY = {"extra_forbidden", "unexpected_keyword_argument"}
_MISSING_KEY = {"missing", "missing_argument", "missing_keyword_only_argument"}
_NO_BRANCH = {"union_tag_invalid", "union_tag_not_found"}


def validate(model: type[Model], source: Source) -> Model:
    """Build a model from plain data.

    The data goes through JSON, because only there strict validation takes a list for a tuple and a mapping
    for a dataclass, while it still refuses text for a number.

    Args:
        model: A strict pydantic model.
        source: The data.

    Raises:
        RecipeError: The data is not valid. The text has one line per problem.
    """
    text = json.dumps(source.data)
    try:
        return model.model_validate_json(text)
    except ValidationError as error:
        described = Described(model.model_json_schema(), source.data)
        problems = [problem for detail in error.errors() for problem in _explain(detail, described)]
    raise recipe_error([(source.where(problem.path), problem) for problem in _outermost(problems)])


def _outermost(problems: list[Problem]) -> list[Problem]:
    """Drop problems at or below the path of another: the branches of a union each add their own."""
    kept: dict[KeyPath, Problem] = {}
    paths = {problem.path for problem in problems}
    for problem in problems:
        if not any(problem.path[:length] in paths for length in range(len(problem.path))):
            kept.setdefault(problem.path, problem)
    return list(kept.values())


def _explain(detail: ErrorDetails, described: Described) -> list[Problem]:
    kind = detail["type"]
    path = _path(detail["loc"], described, missing=kind in _MISSING_KEY)
    if kind == "recipe":
        problems: list[Problem] = detail["ctx"]["problems"]
        return problems
    if kind == "value_error":
        return [Problem(path, str(detail["ctx"]["error"]))]
    if kind == "too_short" and len(detail["input"]) >= detail["ctx"]["min_length"]:
        return []  # pydantic does not count items that have problems of their own
    if kind in _UNKNOWN_KEY:
        keys = described.keys(path[:-1])
        return [misfit(path, "an unknown key", ", ".join(keys), nearest(str(path[-1]), keys))]
    value = detail["input"]
    node = described.at(path)
    if node is None:
        return [misfit(path, show_value(value), detail["msg"])]
    if kind in _MISSING_KEY:
        return [misfit(path, "nothing", described.words(node))]
    if kind in _NO_BRANCH and isinstance(value, Mapping):
        tag = described.tag(node, value)
        if tag is not None:
            key, choices = tag
            return [_choice((*path, key), value.get(key), choices, key in value)]
        return [misfit(path, show_value(value), described.words(node), described.nearest_key(node, value))]
    branch = described.choose(node, value)
    constants = [branch["const"]] if "const" in branch else branch.get("enum", [])
    if constants:
        return [_choice(path, value, constants, True)]
    return [misfit(path, show_value(value), described.words(node))]


def _choice(path: KeyPath, value: object, choices: list[Any], given: bool) -> Problem:
    hint = (
        nearest(value, [choice for choice in choices if isinstance(choice, str)])
        if isinstance(value, str)
        else ""
    )
    return misfit(path, show_value(value) if given else "nothing", show_choices(choices), hint)


def _path(location: tuple[int | str, ...], described: Described, *, missing: bool) -> KeyPath:
    """Return the key path of a pydantic location, without the names of union branches that it holds."""
    path: list[str | int] = []
    data, labelled = described.data, False
    for position, key in enumerate(location):
        if not labelled and described.is_union(tuple(path)):
            labelled = True  # the name of a branch, even where the data has a key of that name
            continue
        if holds(data, key):
            data = item(data, key)
        elif not (missing and position == len(location) - 1):
            continue
        path.append(key)
        labelled = False
    return tuple(path)
