"""What the blocks of a span hand on, confirmed on the model's own graph: a forecast leaves all of them out."""

from __future__ import annotations

import itertools
import operator

import torch
from torch import fx

from sdtm_fx.capture.arguments import Signature
from sdtm_fx.errors import SiteError
from sdtm_fx.recipe.span import SpanSpec

Handed = tuple[tuple[int | None, str], ...]
"""Outputs of a block by index (None: it returns no tuple), each with the argument of the next block that it becomes."""


def handed_on(model: torch.nn.Module, span: SpanSpec, blocks: list[fx.Node]) -> tuple[Handed, ...]:
    """Find, for every block of a span that is forecast, the arguments that stand for its outputs.

    A block that is left out returns what it was given. The last one returns the forecast in place of the image; what
    else it returns, nobody may read.

    Args:
        model: The model.
        span: The span.
        blocks: Its blocks in the model's own graph, in order.

    Raises:
        SiteError: The model reads an output that is no argument of the next block, or anything but the image tokens
            behind the span.
    """
    links = [_link(model, span, one, other) for one, other in itertools.pairwise(blocks)]
    for user in blocks[-1].users:
        output = _index(user)
        if output != span.output and user.users:
            raise SiteError(
                f"span {span.id!r}: the model reads output {output} of {blocks[-1].target}, the last block, beside the "
                f"image tokens ({next(iter(user.users))}); what is forecast is the image alone, so accepted are spans "
                "behind which nothing else is read"
            )
    return (*links, links[-1] if links else ())


def _link(model: torch.nn.Module, span: SpanSpec, one: fx.Node, other: fx.Node) -> Handed:
    arguments = Signature.of(type(model.get_submodule(str(other.target))).forward).bind(
        other.args, other.kwargs
    )
    named = {value: name for name, value in arguments.items() if isinstance(value, fx.Node)}
    if span.output is None:
        return ((None, named[one]),) if one in named else ()
    found: list[tuple[int | None, str]] = []
    for user in one.users:
        index = _index(user)
        if user in named:
            found.append((index, named[user]))
        if not user.users or (user in named and set(user.users) == {other}):
            continue
        reader = next(reader for reader in user.users if reader is not other)
        raise SiteError(
            f"span {span.id!r}: between {one.target} and {other.target} the model reads output {index} ({reader}); a "
            "block that is forecast returns nothing new, so accepted are blocks that hand on what they return"
        )
    return tuple(sorted(found, key=str))


def _index(user: fx.Node) -> int | None:
    return user.args[1] if user.target is operator.getitem and isinstance(user.args[1], int) else None
