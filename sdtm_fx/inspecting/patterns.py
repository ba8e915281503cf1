"""From module paths to one pattern that means exactly these: a glob over block lists, or a regular expression."""

from __future__ import annotations

import re
from collections.abc import Collection, Iterable

from sdtm_fx.recipe.match import REGEX_PREFIX, compile_match


def pattern_for(wanted: Collection[str], every: Iterable[str]) -> str:
    """Return a pattern that matches the wanted paths and no others.

    A glob where one is enough (``blocks.*.attn``); else an expression that names the numbers of the lists in which
    not every entry is wanted; else one that names the paths.

    Args:
        wanted: Module paths.
        every: All module paths of the model.
    """
    paths, target = list(every), set(wanted)
    families: dict[str, list[str]] = {}
    for path in wanted:
        families.setdefault(family(path), []).append(path)
    if len(families) == 1:
        (glob,) = families
        if _matches(glob, paths) == target:
            return glob
    bodies = [
        _parts(name, found, [p for p in paths if family(p) == name]) for name, found in families.items()
    ]
    expression = REGEX_PREFIX + _join(bodies)
    if _matches(expression, paths) == target:
        return expression
    return REGEX_PREFIX + "|".join(re.escape(path) for path in wanted)


def family(path: str) -> str:
    """The path with ``*`` for numbers: what entries of a list have in common."""
    return ".".join("*" if part.isdigit() else part for part in path.split("."))


def _matches(pattern: str, paths: Iterable[str]) -> set[str]:
    accepts = compile_match(pattern)
    return {path for path in paths if accepts(path)}


def _parts(name: str, wanted: list[str], every: list[str]) -> list[str]:
    """Expressions for the parts of paths of one family: the numbers of a list are named where not all occur."""
    parts = []
    for place, part in enumerate(name.split(".")):
        if part != "*":
            parts.append(re.escape(part))
            continue
        mine, all_ = ({path.split(".")[place] for path in paths} for paths in (wanted, every))
        numbers = sorted(mine, key=int)
        some = numbers[0] if len(numbers) == 1 else f"({'|'.join(numbers)})"
        parts.append(r"\d+" if mine == all_ else some)
    return parts


def _join(bodies: list[list[str]]) -> str:
    """One expression for several families; what all of them end with is written once."""
    shared = 0
    while len({tuple(body[-shared - 1 :]) for body in bodies}) == 1 and all(
        len(b) > shared + 1 for b in bodies
    ):
        shared += 1
    heads = [r"\.".join(body[: len(body) - shared]) for body in bodies]
    tail = bodies[0][len(bodies[0]) - shared :]
    head = heads[0] if len(heads) == 1 else f"({'|'.join(heads)})"
    return r"\.".join([head, *tail])
