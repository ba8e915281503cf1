"""Recipes for the tests of the schedule."""

from __future__ import annotations

from typing import Any

from sdtm_fx.recipe.schema import Recipe

SSM = {"name": "ssm"}
MATCH = {"name": "local_match"}
SKIP = {"name": "skip"}


def stage(name: str, until: float, method: dict[str, Any], **more: Any) -> dict[str, Any]:
    return {"name": name, "until": until, "sites": ["ff"], "method": method, **more}


def cosine(start: float = 0.7, end: float = 0.3, levels: int = 4) -> dict[str, Any]:
    return {"curve": "cosine", "start": start, "end": end, "levels": levels}


def make(**changes: Any) -> Recipe:
    """Structure (ssm) until 0.4, detail (local_match) to the end, cosine from 0.7 to 0.3."""
    data: dict[str, Any] = {
        "version": 1,
        "name": "test",
        "model": ["Model"],
        "tokens": {"grid": {"latent": "hidden_states", "patch": 2}},
        "sites": [{"id": "ff", "kind": "feed_forward", "match": "ff"}],
        "stages": [stage("structure", 0.4, SSM), stage("detail", 1.0, MATCH)],
        "ratio": cosine(),
    }
    return Recipe.from_mapping({**data, **changes})
