"""Keys of recipes that are younger than version 1 of the language: saying nothing changes no fingerprint."""

from __future__ import annotations

from typing import Any

_DEFAULTS: tuple[tuple[str, str, object], ...] = (
    ("", "gate", "auto"),
    ("", "layers", []),
    ("", "spans", []),
    ("keep_dense", "steps", []),
    ("plan", "destinations_every", None),
    ("plan", "proportional", False),
    ("reuse", "update", "dense"),
    ("sites", "call", None),
    ("sites", "downsample", 1),
    ("sites", "metric", None),
    ("sites", "merge", "tokens"),
    ("stages", "inside", None),
    ("stages", "reduce", None),
    ("sites", "rotary_axis", 0),
    ("spans", "rotary_axis", 0),
    ("sites", "suffix", None),
    ("sites", "without", None),
    ("inputs", "before", None),
    ("inputs", "copies", None),
    ("inputs", "read", False),
    ("tokens", "protect", {"first_frames": 0}),
    ("tokens.grid", "axes", None),
    ("tokens.grid", "columns", None),
    ("tokens.grid", "frames", None),
    ("tokens.grid", "reference_column", None),
    ("tokens.grid", "round", "down"),
    ("tokens.grid", "square", False),
)
"""Section ("" for the recipe itself, a dot inside of another), key, and the value that says nothing."""


def without_younger(data: dict[str, Any]) -> dict[str, Any]:
    """Leave out of a recipe's data the keys that came after version 1 and say nothing.

    Recipes that do not use them keep the fingerprint that they had.

    Args:
        data: As `Recipe.to_data` returns it; it is left as it is.
    """
    kept = _cut(data, "")
    for section in {section for section, _, _ in _DEFAULTS if section}:
        *outer, key = section.split(".")
        owner = kept
        for name in outer:
            owner[name] = owner = dict(owner[name])
        parts = owner.get(key)
        if section == "inputs" and parts is not None:
            owner[key] = {name: _cut(part, section) for name, part in parts.items()}
        elif parts is not None:
            owner[key] = (
                [_cut(part, section) for part in parts] if isinstance(parts, list) else _cut(parts, section)
            )
    return kept


def _cut(part: dict[str, Any], section: str) -> dict[str, Any]:
    silent = {key: value for where, key, value in _DEFAULTS if where == section}
    return {key: value for key, value in part.items() if key not in silent or value != silent[key]}
