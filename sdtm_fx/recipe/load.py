"""`load_recipe`: one door for names, files, mappings and recipes."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, TypeAlias

from sdtm_fx.errors import RecipeError
from sdtm_fx.recipe.extend import SUFFIXES, list_recipes
from sdtm_fx.recipe.schema import Recipe

__all__ = ["RecipeLike", "list_recipes", "load_recipe"]

RecipeLike: TypeAlias = "str | Path | Mapping[str, Any] | Recipe"


def load_recipe(source: RecipeLike) -> Recipe:
    """Return a checked recipe.

    Args:
        source: The name of a shipped recipe, a path (a `Path`, or text that ends in .yaml or .yml), what a
            file would hold as a mapping, or a recipe, which is returned as it is. A shipped name wins over a
            path.

    Raises:
        RecipeError: There is no such recipe, or it is not valid; the text says in which file, line and key.
    """
    if isinstance(source, Recipe):
        return source
    if isinstance(source, Path):
        return Recipe.from_file(source)
    if isinstance(source, str):
        is_path = source.endswith(SUFFIXES) and source not in list_recipes()
        return Recipe.from_file(source) if is_path else Recipe.named(source)
    if isinstance(source, Mapping):
        return Recipe.from_mapping(source)
    raise RecipeError(
        f"load_recipe: found a {type(source).__name__}; accepted a recipe, its name, a path, or a mapping"
    )
