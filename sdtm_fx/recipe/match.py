"""Which module paths a pattern means: a glob, or a regular expression behind ``re:``."""

from __future__ import annotations

import difflib
import re
from collections.abc import Callable, Iterable

REGEX_PREFIX = "re:"

_GLOB_TOKEN = re.compile(r"\*\*+|\*")
_NEAR = 0.5
_MOST = 5


def compile_match(pattern: str) -> Callable[[str], bool]:
    """Return a predicate over module paths.

    In a glob ``*`` stands for any text without a dot, ``**`` for any text, both possibly empty; everything
    else stands for itself, and the whole path must match. ``re:`` puts a regular expression in its place,
    which must match the whole path too.

    Args:
        pattern: For example ``transformer_blocks.*.attn`` or ``re:blocks\\.(0|1)\\.ff``.

    Raises:
        ValueError: The pattern is empty, or not a regular expression.
    """
    body = pattern.removeprefix(REGEX_PREFIX)
    if not body:
        raise ValueError("an empty pattern")
    try:
        expression = re.compile(body if pattern.startswith(REGEX_PREFIX) else _glob_to_regex(body))
    except re.error as error:
        raise ValueError(f"a broken regular expression ({error})") from error
    return lambda path: expression.fullmatch(path) is not None


def near_misses(pattern: str, paths: Iterable[str]) -> list[str]:
    """Return module paths that look like what the pattern wants, the most alike first.

    Paths that differ in block numbers only count once and are represented by the first of them.

    Args:
        pattern: As for `compile_match`.
        paths: The module paths there are.
    """
    matches = compile_match(pattern)
    wanted = pattern.removeprefix(REGEX_PREFIX).replace("\\", "")
    first_of_shape: dict[str, str] = {}
    for path in paths:
        if path and not matches(path):
            first_of_shape.setdefault(_shape(path), path)
    likeness = {shape: difflib.SequenceMatcher(None, wanted, shape).ratio() for shape in first_of_shape}
    close = sorted(
        (shape for shape in likeness if likeness[shape] >= _NEAR), key=lambda shape: -likeness[shape]
    )
    return [first_of_shape[shape] for shape in close[:_MOST]]


def _glob_to_regex(glob: str) -> str:
    parts: list[str] = []
    position = 0
    for token in _GLOB_TOKEN.finditer(glob):
        parts.append(re.escape(glob[position : token.start()]))
        parts.append(r"[^.]*" if token.group() == "*" else r"(?s:.*)")
        position = token.end()
    return "".join(parts) + re.escape(glob[position:])


def _shape(path: str) -> str:
    return ".".join("*" if part.isdigit() else part for part in path.split("."))
