"""Insert spans: a block merges its image tokens at its start or end, runs on merged ones, or unmerges at its end.

| the block | its image argument ``x`` | its image output ``y`` |
|---|---|---|
| begins a span at its start | ``enter(plan(x), x)`` | |
| begins a span at its end | | ``enter(plan(y), y)`` |
| is inside | ``inside(x)``, which checks | |
| ends it | ``inside(x)`` | ``leave(y)`` |

Blocks hand the merged tokens on through the model's own forward, the plan through the context.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import fx

from sdtm_fx.errors import SiteError
from sdtm_fx.passes.insert_merges import stream_image
from sdtm_fx.recipe.span import SpanSpec
from sdtm_fx.rewriting.work import BlockWork, Pass
from sdtm_fx.runtime import ops, span_ops


def insert_spans(work: BlockWork) -> int:
    """Insert what the block does in its span; returns the number of operations."""
    place = work.span
    if place is None:
        return 0
    span = work.recipe.spans[place.span_index]
    tokens = image_argument(work, span)
    result = image_output(work, span, tokens)
    inserted = 0
    if not place.first or span.enter == "start":
        _shorten_input(work, span, tokens, place.first)
        inserted = 1 + _shorten_tables(work, span)
    if place.first and span.enter == "end":
        replace_output(work, span, _enter(work, span, result))
        inserted += 1
    if place.last:
        last = next(iter(reversed(work.graph.nodes)))
        with work.graph.inserting_before(last):
            full = work.graph.call_function(span_ops.leave_span, (work.ctx, result, span.id))
        full.meta["val"] = result.meta["val"]
        replace_output(work, span, full)
        inserted += 1
    return inserted


def image_argument(work: BlockWork, span: SpanSpec) -> fx.Node:
    """The argument that carries the image tokens.

    Raises:
        SiteError: The block is given none of that name, or it is no sequence.
    """
    node = work.argument(span.input, "input", f"span {span.id!r}")
    if not _is_sequence(node):
        raise SiteError(f"span {span.id!r}: argument {span.input!r} is not a [batch, tokens, width] tensor")
    return node


def image_output(work: BlockWork, span: SpanSpec, tokens: fx.Node) -> fx.Node:
    """What the block returns as image tokens.

    Raises:
        SiteError: It returns nothing there, or other shapes than it takes.
    """
    result = next(iter(reversed(work.graph.nodes))).args[0]
    where = f"span {span.id!r}: {type(work.block).__name__}"
    if span.output is None:
        found = result
    elif isinstance(result, tuple | list) and span.output < len(result):
        found = result[span.output]
    else:
        count = len(result) if isinstance(result, tuple | list) else 1
        raise SiteError(f"{where} returns {count} values; there is no output {span.output}")
    if not isinstance(found, fx.Node) or not _is_sequence(found):
        raise SiteError(f"{where}: what it returns as image tokens is no [batch, tokens, width] tensor; say which "
                        "with `output`")  # fmt: skip
    if found.meta["val"].shape != tokens.meta["val"].shape:
        shapes = [list(n.meta["val"].shape) for n in (tokens, found)]
        raise SiteError(f"{where} takes image tokens as {shapes[0]} and returns them as {shapes[1]}")
    return found


def _shorten_input(work: BlockWork, span: SpanSpec, tokens: fx.Node, first: bool) -> None:
    users = list(tokens.users)
    body = next(n for n in work.graph.nodes if n.op != "placeholder")
    with work.graph.inserting_before(body):
        if first:
            short = _enter(work, span, tokens)
        else:
            short = work.graph.call_function(span_ops.inside_span, (work.ctx, tokens, span.id))
    short.meta["val"] = tokens.meta["val"]  # rank and width are what later passes ask for
    for user in users:
        user.replace_input_with(tokens, short)


def _enter(work: BlockWork, span: SpanSpec, tokens: fx.Node) -> fx.Node:
    graph = work.graph
    behind = (
        tokens.next if tokens.op != "placeholder" else next(n for n in graph.nodes if n.op != "placeholder")
    )
    with graph.inserting_before(behind):
        plan = graph.call_function(ops.plan_tokens, (work.ctx, stream_image(work, tokens)))
        arguments = (work.ctx, plan, tokens, span.id, span.residual == "dense")
        short = graph.call_function(span_ops.enter_span, arguments)
    short.meta["val"] = tokens.meta["val"]
    return short


def _shorten_tables(work: BlockWork, span: SpanSpec) -> int:
    if span.rotary is None:
        return 0
    tables = [
        n for n in work.graph.nodes if n.op == "placeholder" and _belongs_to(str(n.target), span.rotary)
    ]
    if not tables:
        raise SiteError(f"span {span.id!r}: {type(work.block).__name__} is given no {span.rotary!r}")
    follow = span_ops.span_rotary if work.recipe.passes.gather_rotary else span_ops.cut_span_rotary
    entered = work.calls(span_ops.enter_span, span_ops.inside_span)[0]
    for table in tables:
        users = list(table.users)
        with work.graph.inserting_after(entered):
            along = (span.rotary_axis,) if span.rotary_axis else ()
            short = work.graph.call_function(follow, (work.ctx, table, span.id, *along))
        short.meta["val"] = table.meta["val"]
        for user in users:
            user.replace_input_with(table, short)
    return len(tables)


def _belongs_to(leaf: str, argument: str) -> bool:
    """Whether a placeholder is an argument or an item of it (``image_rotary_emb_0``)."""
    return leaf == argument or (leaf.startswith(f"{argument}_") and leaf[len(argument) + 1 :].isdigit())


def replace_output(work: BlockWork, span: SpanSpec, value: fx.Node) -> None:
    """Return something else as image tokens."""
    output = next(iter(reversed(work.graph.nodes)))
    result: Any = output.args[0]
    if span.output is None:
        output.args = (value,)
    else:
        output.args = (type(result)(value if i == span.output else r for i, r in enumerate(result)),)


def _is_sequence(node: fx.Node) -> bool:
    value = node.meta.get("val")
    return isinstance(value, torch.Tensor) and value.ndim == 3


INSERT_SPANS = Pass("insert_spans", exact=False, run=insert_spans)
