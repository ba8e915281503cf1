"""Forecast spans: a run of blocks is left out, and what it adds to the image stream is forecast as one.

| the block | on a dense step that stores | in a stage that forecasts |
|---|---|---|
| begins the span | ``begin(x)`` | hands on ``begin(x)``, and what else it is given |
| lies between | nothing | hands on what it is given |
| ends it | ``store(y)`` | ``forecast()``, and what else it is given |

Blocks add to the stream. A straight line through what each of them adds, summed, is the straight line through the sum,
so one feature for the span gives what one for every attention and feed-forward would give, up to rounding.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import fx

from sdtm_fx.errors import SiteError
from sdtm_fx.passes.insert_spans import image_argument, image_output, replace_output
from sdtm_fx.recipe.span import SpanSpec
from sdtm_fx.rewriting.handing import Handed
from sdtm_fx.rewriting.work import BlockWork, Pass
from sdtm_fx.runtime import span_ops


def forecast_spans(work: BlockWork) -> int:
    """Insert what the block does in a span that is forecast; returns the number of operations."""
    place = work.forecast
    if place is None:
        return 0
    span = work.recipe.spans[place.span_index]
    tokens = image_argument(work, span)
    result = image_output(work, span, tokens)
    inserted = int(place.first) + int(place.last)
    if place.first:
        tokens = _begin(work, span, tokens)
    if work.variant.stage is None:
        if place.last:
            replace_output(work, span, _at_the_end(work, result, span_ops.store_stream, result, span.id))
        return inserted
    if place.last:
        tokens = _at_the_end(work, result, span_ops.forecast_stream, span.id)
    _hand_on(work, span, place.handed, tokens)
    work.drop_unused()
    return inserted


def _begin(work: BlockWork, span: SpanSpec, tokens: fx.Node) -> fx.Node:
    users = list(tokens.users)
    with work.graph.inserting_before(next(n for n in work.graph.nodes if n.op != "placeholder")):
        begun = work.graph.call_function(span_ops.begin_stream, (work.ctx, tokens, span.id))
    begun.meta["val"] = tokens.meta["val"]
    for user in users:
        user.replace_input_with(tokens, begun)
    return begun


def _at_the_end(
    work: BlockWork, result: fx.Node, function: Callable[..., torch.Tensor], *arguments: fx.Node | str
) -> fx.Node:
    with work.graph.inserting_before(next(iter(reversed(work.graph.nodes)))):
        node = work.graph.call_function(function, (work.ctx, *arguments))
    node.meta["val"] = result.meta["val"]
    return node


def _hand_on(work: BlockWork, span: SpanSpec, handed: Handed, tokens: fx.Node) -> None:
    """Return the image tokens, and for all else what the block is given."""
    replace_output(work, span, tokens)
    if span.output is None:
        return
    output = next(iter(reversed(work.graph.nodes)))
    values, names = list(output.args[0]), dict(handed)
    for index, value in enumerate(values):
        if index == span.output or not isinstance(value, fx.Node):
            continue
        # What the next block does not get, nobody reads: anything of its shape will do.
        candidates = [work.given[names[index]]] if index in names else list(work.given.values())
        values[index] = next((node for node in candidates if _shape(node) == _shape(value)), None)
        if values[index] is None:
            raise SiteError(
                f"span {span.id!r}: {type(work.block).__name__} returns as number {index} what none of its arguments "
                f"stands for ({', '.join(work.given)}); accepted are blocks that hand on what they are given"
            )
    output.args = (type(output.args[0])(values),)


def _shape(node: fx.Node) -> torch.Size | None:
    value = node.meta.get("val")
    return value.shape if isinstance(value, torch.Tensor) else None


FORECAST_SPANS = Pass("forecast_spans", exact=False, run=forecast_spans)
