"""The JSON Schema of recipe files, for editors."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from sdtm_fx.recipe.schema import Recipe

_EXTENDS = {
    "type": "string",
    "minLength": 1,
    "description": "Recipe below this one: a shipped name, or a path that ends in .yaml.",
}


def json_schema() -> dict[str, Any]:
    """Return the JSON Schema (2020-12) of recipe files.

    A file that says `extends` may leave out what the recipe below it holds; what the two make together is
    checked when they are loaded.
    """
    whole = Recipe.model_json_schema()
    definitions: dict[str, Any] = whole.pop("$defs")
    for definition in definitions.values():
        name = definition.get("properties", {}).get("name", {})
        if "const" in name:  # the option that tells methods apart has a default in Python, and none in YAML
            definition["required"] = sorted({*definition.get("required", []), "name"})
    return {
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        "title": "sdtm_fx recipe",
        "if": {"required": ["extends"]},
        "then": _extending(whole, definitions),
        "else": whole,
        "$defs": definitions,
    }


def _extending(whole: Mapping[str, Any], definitions: Mapping[str, Any]) -> dict[str, Any]:
    loose: dict[str, Any] = _loosen(whole, definitions)
    for section, name in (("sites", "SiteSpec"), ("spans", "SpanSpec"), ("stages", "Stage")):
        change = {"type": "object", "additionalProperties": _loosen(definitions[name], definitions)}
        loose["properties"][section] = {"anyOf": [loose["properties"][section], change]}
    loose["properties"]["extends"] = _EXTENDS
    loose["required"] = ["version", "name", "extends"]
    return loose


def _loosen(node: Any, definitions: Mapping[str, Any]) -> Any:
    """Return a schema for part of a mapping: nothing is required, until a list starts."""
    if not isinstance(node, Mapping):
        return node
    if "$ref" in node:
        return _loosen(definitions[node["$ref"].rpartition("/")[2]], definitions)
    loose: dict[str, Any] = {}
    for key, value in node.items():
        if key in ("oneOf", "anyOf"):
            loose["anyOf"] = [_loosen(branch, definitions) for branch in value]
        elif key == "properties":
            loose[key] = {name: _loosen(inner, definitions) for name, inner in value.items()}
        elif key not in ("required", "discriminator"):
            loose[key] = value
    return loose
