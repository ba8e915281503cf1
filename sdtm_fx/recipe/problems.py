"""What is wrong with a recipe: ``file:line: key.path: found X; accepted Y (did you mean 'z'?)``."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TypeAlias

from sdtm_fx.errors import RecipeError

KeyPath: TypeAlias = tuple[str | int, ...]

_LONGEST = 60


@dataclass(frozen=True)
class Problem:
    """One fault of a recipe.

    Attributes:
        path: Keys and list indices from the top of the recipe.
        message: What is found there, and what is accepted.
    """

    path: KeyPath
    message: str

    def __str__(self) -> str:
        """Write the key path and the message."""
        return f"{show_path(self.path)}: {self.message}"


def misfit(path: KeyPath, found: str, accepted: str, hint: str = "") -> Problem:
    """Return the problem that something is found where something else is accepted.

    Args:
        path: Where.
        found: What stands there.
        accepted: What may stand there.
        hint: Nearest spelling or advice, with a leading space, or empty.
    """
    return Problem(path, f"found {found}; accepted {accepted}{hint}")


def show_path(path: KeyPath) -> str:
    """Write a key path as ``stages[1].method.name``; the empty path is ``recipe``."""
    text = "".join(f"[{key}]" if isinstance(key, int) else f".{key}" for key in path)
    return text.removeprefix(".") or "recipe"


def show_value(value: object) -> str:
    """Write a value of a recipe shortly, in YAML's words."""
    if isinstance(value, bool) or value is None:
        return {True: "true", False: "false", None: "null"}[value]
    if isinstance(value, Mapping):
        return f"a mapping with keys {', '.join(map(str, value))}" if value else "an empty mapping"
    if isinstance(value, (list, tuple)):
        return f"a list of {len(value)}" if value else "an empty list"
    text = repr(value)
    return text if len(text) <= _LONGEST else text[: _LONGEST - 3] + "..."


def show_choices(choices: Sequence[object]) -> str:
    """Write the accepted values of a field: ``'a', 'b' or 'c'``."""
    shown = [show_value(choice) for choice in choices]
    return shown[0] if len(shown) == 1 else f"{', '.join(shown[:-1])} or {shown[-1]}"


def recipe_error(problems: Sequence[tuple[str, Problem]]) -> RecipeError:
    """Return one error for all problems, one line each.

    Args:
        problems: Where (``file:line``) and what; at least one.
    """
    return RecipeError("\n".join(f"{where}: {problem}" for where, problem in problems))
