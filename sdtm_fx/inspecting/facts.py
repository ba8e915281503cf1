"""What is known of an argument of a model's forward before it is tried: its neighbours, and fields of the config."""

from __future__ import annotations

import inspect
import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from sdtm_fx.inspecting.arguments import Dimension


@dataclass(frozen=True)
class Facts:
    """What rules may look at.

    Attributes:
        config: The config.
        names: The arguments of forward, in order.
        fixed_text: Whether lengths of text that the config names come before any length.
        parts: Names of the model's own modules.
    """

    config: Mapping[str, Any]
    names: tuple[str, ...]
    fixed_text: bool = False
    parts: tuple[str, ...] = ()


def fields_of(facts: Facts, *names: str) -> list[str]:
    """Fields of the config that are whole numbers, of those names."""
    return [n for n in names if type(facts.config.get(n)) is int]


def widths_of(argument: str, facts: Facts, *words: str) -> list[Dimension]:
    """Fields that may be the width of an argument: those with a likely word first, then all others.

    An ending that the argument shares (``_t5``) comes before anything else.
    """
    numbers = {n: v for n, v in facts.config.items() if type(v) is int and v > 1}
    tail = argument.rpartition("_")[2]

    def rank(name: str) -> tuple[int, int]:
        shared = 0 if name.endswith(f"_{tail}") and len(tail) > 1 and tail != "states" else 1
        is_size = any(word in name for word in ("dim", "channels", "size", "width"))
        hit = next((i for i, w in enumerate(words) if w in name and is_size), len(words))
        return hit if hit < len(words) else len(words) + (not is_size), shared

    ordered = sorted(numbers, key=lambda n: (rank(n)[1] if rank(n)[0] < len(words) else 1, rank(n)))
    first_of: dict[int, str] = {}
    for name in ordered:
        first_of.setdefault(numbers[name], name)
    return list(first_of.values())


def text_lengths(argument: str, facts: Facts) -> list[Dimension]:
    """The numbers of tokens that a text may have: any, and what fields of the config fix.

    A field whose ending the argument shares (``_t5``) comes before the others.
    """
    fields = fixed_lengths(facts.config)
    tail = argument.rpartition("_")[2]
    plain = not any(name.endswith(f"_{tail}") for name in fields)
    fields.sort(key=lambda n: (not n.endswith("len") if plain else not n.endswith(f"_{tail}"), n))
    return [*fields, "text"] if facts.fixed_text else ["text", *fields]


def fixed_lengths(config: Mapping[str, Any]) -> list[str]:
    """Fields of a config that may fix the number of text tokens."""
    named = [n for n, v in config.items() if type(v) is int and re.search(r"text_len|max_text|text_seq", n)]
    return [n for n in named if "rope" not in n]


def is_extra(parameter: inspect.Parameter, facts: Facts) -> bool:
    """Whether an argument is optional and comes behind others of its kind."""
    if parameter.default is parameter.empty:
        return False
    base = parameter.name.rpartition("_")[0]
    return any(base.startswith(other) for other in facts.names if other != parameter.name and len(other) > 3)


def parameters_of(forward: Callable[..., Any]) -> Iterator[inspect.Parameter]:
    """The parameters that a call of a forward must or may give, ``self`` and ``return_dict`` left out."""
    for parameter in list(inspect.signature(inspect.unwrap(forward)).parameters.values())[1:]:
        if (
            parameter.kind not in (parameter.VAR_KEYWORD, parameter.VAR_POSITIONAL)
            and parameter.name != "return_dict"
        ):
            yield parameter
