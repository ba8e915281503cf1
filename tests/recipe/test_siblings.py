"""Recipes for the same model and another purpose are found by their names."""

from __future__ import annotations

import pytest

from sdtm_fx.recipe.siblings import sibling


@pytest.mark.parametrize(
    ("name", "purposes", "found"),
    [
        ("sd3-medium", ("few",), "sd3-medium-few"),
        ("sd3-medium-windows", ("few",), "sd3-medium-few"),
        ("sd3-medium-windows-suggested", ("merge",), "sd3-medium-merge"),
        ("sd3.5-large", ("merge", "windows"), "sd3.5-large-windows"),
        ("sd3-medium", ("merge", "windows"), "sd3-medium-merge"),
        ("sd3-medium-few", ("few",), None),  # itself
        ("wan2.1-t2v-14b", ("few",), None),
        ("mine", ("few",), None),
    ],
)
def test_the_closest_name_is_taken(name: str, purposes: tuple[str, ...], found: str | None) -> None:
    assert sibling(name, *purposes) == found
