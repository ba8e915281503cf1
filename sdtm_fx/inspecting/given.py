"""``--input name=dims[:fill]``: arguments of the example call that the user gives."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from typing import Any

from sdtm_fx.errors import InspectionError, nearest
from sdtm_fx.inspecting.arguments import Argument, CallSizes

_FILLS = ("zeros", "ones", "grid_ids")
_KINDS = ("float", "int", "bool")


def parse_inputs(texts: Iterable[str], config: Mapping[str, Any]) -> dict[str, Argument]:
    """Read arguments as a recipe's `inputs` have them: ``timestep=batch``, ``class_labels=batch:zeros:int``.

    Args:
        texts: ``name=dimension,dimension,…``, then fills or types of number, each behind a colon.
        config: Whose fields dimensions may name.

    Raises:
        InspectionError: A text is none of that.
    """
    return {name: argument for name, argument in (_parse(text, config) for text in texts)}


def _parse(text: str, config: Mapping[str, Any]) -> tuple[str, Argument]:
    name, equals, rest = text.partition("=")
    dims, *words = rest.split(":")
    if not equals or not name or not dims:
        raise InspectionError(
            f"--input {text!r}: found no name=dimensions; write name=batch,text,16 or name=batch:zeros"
        )
    known = [*CallSizes(1, 1, 1, 1).named(), *(k for k, v in config.items() if type(v) is int)]
    shape: list[int | str] = []
    for dim in re.split(r"[,\s]+", dims.strip("[] ")):
        if dim.isdigit():
            shape.append(int(dim))
        elif dim in known:
            shape.append(dim)
        else:
            raise InspectionError(
                f"--input {text!r}: {dim!r} is no size{nearest(dim, known)}; accepted: {', '.join(known)}"
            )
    fill: Any = None
    kind: Any = "float"
    for word in words:
        if word not in (*_FILLS, *_KINDS):
            accepted = ", ".join((*_FILLS, *_KINDS))
            raise InspectionError(
                f"--input {text!r}: found {word!r}; accepted: {accepted}{nearest(word, (*_FILLS, *_KINDS))}"
            )
        fill, kind = (word, kind) if word in _FILLS else (fill, word)
    return name, Argument(tuple(shape), fill, kind)
