"""Shipped recipes for one model are named alike: ``sd3-medium``, ``sd3-medium-merge``, ``sd3-medium-few``."""

from __future__ import annotations

from sdtm_fx.recipe.extend import list_recipes


def sibling(name: str, *purposes: str) -> str | None:
    """Find a shipped recipe for the same model and another purpose.

    Args:
        name: Of any recipe; its first words may be those of a shipped one.
        purposes: Last words, such as ``few``; the first that exists is taken.

    Returns:
        The name that begins with most of the words of `name` and ends in the purpose, or None.
    """
    shipped, words = list_recipes(), name.split("-")
    names = ("-".join([*words[:count], last]) for last in purposes for count in range(len(words), 0, -1))
    return next((each for each in names if each in shipped and each != name), None)
