"""Recipes back to YAML that the strict loader reads as the same data."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import yaml

from sdtm_fx.recipe.yaml_source import read_scalar


class _Dumper(yaml.SafeDumper):
    """Quotes text that the strict loader would read as something else."""

    def increase_indent(self, flow: bool = False, indentless: bool = False) -> None:
        """Indent lists below their key."""
        super().increase_indent(flow, False)


def _represent_text(dumper: yaml.SafeDumper, text: str) -> yaml.ScalarNode:
    style = "'" if not isinstance(read_scalar(text), str) else None if text.isprintable() else '"'
    return dumper.represent_scalar("tag:yaml.org,2002:str", text, style=style)


_Dumper.add_representer(str, _represent_text)


def write_yaml(data: Mapping[str, Any]) -> str:
    """Return the data of a recipe as YAML.

    Args:
        data: What `Recipe.to_data` returns.
    """
    short = {key: value for key, value in data.items() if value is not None}
    short["inputs"] = {name: _short_input(spec) for name, spec in data["inputs"].items()}
    short["sites"] = [_without_null(site) for site in data["sites"]]
    short["spans"] = [_without_null(span) for span in data["spans"]]
    short["stages"] = [_without_null(stage) for stage in data["stages"]]
    return dump_yaml(short)


def dump_yaml(data: Mapping[str, Any]) -> str:
    """Return plain data, a part of a recipe for instance, as YAML that the strict loader reads as the same data."""
    return yaml.dump(
        data, Dumper=_Dumper, sort_keys=False, default_flow_style=None, width=110, allow_unicode=True
    )


def _without_null(section: Mapping[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in section.items() if value is not None}


def _short_input(spec: Mapping[str, Any]) -> Any:
    given = _without_null(spec)
    return given["shape"] if set(given) == {"shape"} else given
