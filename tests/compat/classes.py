"""Tests of a recipe whose model class this diffusers does not have yet."""

from __future__ import annotations

from collections.abc import Collection, Mapping

import diffusers
import pytest
from packaging.version import Version

import sdtm_fx
from tests.compat.environments import read_compatibility

RECIPE = "recipe"
"""The property of a test that says which recipe it is about."""
SINCE = " exists since diffusers "


def about(request: pytest.FixtureRequest, name: str) -> None:
    """Note which recipe a test is about; skip it where diffusers is too old for the recipe's model."""
    request.node.user_properties.append((RECIPE, name))
    skip_where_absent(name)


def skip_where_absent(name: str) -> None:
    """Skip a test of a recipe where diffusers is too old for the recipe's model."""
    classes = sdtm_fx.load_recipe(name).model
    if not any(hasattr(diffusers, each) for each in classes):
        pytest.skip(why_absent(classes, diffusers.__version__, read_compatibility().since))


def why_absent(classes: Collection[str], version: str, since: Mapping[str, str]) -> str:
    """Since when the classes of a recipe exist, where an installed diffusers has none of them.

    Args:
        classes: The classes.
        version: The installed diffusers.
        since: The version that brought each of the younger classes.

    Raises:
        LookupError: One ought to be there.
    """
    for name in classes:
        if name not in since:
            raise LookupError(
                f"diffusers {version} has no {name}, and environments.yaml does not say since when"
            )
        if Version(version) >= Version(since[name]):
            raise LookupError(f"diffusers {version} has no {name}; environments.yaml: since {since[name]}")
    return ", ".join(f"{name}{SINCE}{since[name]}" for name in classes)
