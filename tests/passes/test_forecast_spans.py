"""Spans that are forecast, block by block: what the graph calls, and the numbers against what is written out here."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import fx, nn

from sdtm_fx.errors import SiteError
from sdtm_fx.rewriting.handing import Handed
from sdtm_fx.rewriting.spans import SpanPlace
from sdtm_fx.runtime import span_ops
from sdtm_fx.runtime.call import OpenStream, Variant
from tests.passes.blocks import DualBlock, GatedBlock, condition, image, text
from tests.passes.working import ATTN, FF, REUSE, Calls, Worked, close, recipe, work_on

X, T, C = image(), text(), condition()
STAGE, STORE = Variant(stage=0), Variant(stage=None, refresh=0)
SPAN = {"id": "body", "first": 0, "last": 2}
JOINT = {**SPAN, "output": 0}
HANDED: Handed = ((0, "hidden_states"), (1, "encoder_hidden_states"))
OPS = (span_ops.begin_stream, span_ops.store_stream, span_ops.forecast_stream)


def place(number: int, handed: Handed = ((None, "hidden_states"),)) -> SpanPlace:
    return SpanPlace(0, number == 0, number == 2, 0, 2, handed)


def worked(
    number: int, variant: Variant, block: nn.Module | None = None, handed: Handed | None = None, **more: Any
) -> Worked:
    span = more.pop("span", JOINT if block is not None else SPAN)
    rules = recipe([ATTN, FF], ["body"], spans=[span], method={"name": "skip"}, reuse=REUSE, **more)
    where = place(number) if handed is None else place(number, handed)
    args = (X, C) if block is None else (X, T, C)
    return work_on(block or GatedBlock(), args, rules, variant, forecast=where)


def called(w: Worked) -> list[str]:
    return [str(node.target.__name__) for node in w.work.calls(*OPS)]  # type: ignore[union-attr]


@pytest.mark.parametrize(
    ("number", "variant", "ops"),
    [
        (0, STAGE, ["begin_stream"]),
        (1, STAGE, []),
        (2, STAGE, ["forecast_stream"]),
        (0, STORE, ["begin_stream"]),
        (1, STORE, []),
        (2, STORE, ["store_stream"]),
    ],
)
def test_what_is_called_by_place(number: int, variant: Variant, ops: list[str]) -> None:
    w = worked(number, variant)
    assert called(w) == ops
    assert w.applied["forecast_spans"] == len(ops)
    modules = [node for node in w.work.graph.nodes if node.op == "call_module"]
    assert bool(modules) == (variant is STORE)


def test_a_block_between_returns_what_it_is_given() -> None:
    w = worked(1, STAGE, DualBlock(), HANDED)
    assert [node.op for node in w.work.graph.nodes].count("call_function") == 0
    calls = Calls(w.work.recipe)
    got = w.run(X, T, C, call=calls.make(variant=STAGE))
    assert got[0] is X
    assert got[1] is T


def test_stored_and_forecast() -> None:
    """What two dense steps have added makes a line; the stream where the span began is added to it."""
    first, last = worked(2, STORE), worked(2, STAGE)
    last.block.load_state_dict(first.block.state_dict())
    calls, added = Calls(first.work.recipe), []
    for step, x in ((0, X), (2, 0.5 * X)):
        begun = 0.25 * x  # blocks in front of this one have added the rest
        calls.state.set_refreshed(step)
        calls.state.shift()
        out = first.run(x, C, call=calls.make(variant=STORE), spans={"body": OpenStream(begun)})
        close(out, first.block(x, C))
        added.append(out - begun)
    calls.state.set_slope(3, torch.device("cpu"))
    got = last.run(X, C, call=calls.make(variant=STAGE), spans={"body": OpenStream(0.1 * X)})
    close(got, 0.1 * X + added[1] + 0.5 * (added[1] - added[0]))


def test_the_stream_where_it_began_is_kept_from_what_happens_to_it() -> None:
    w = worked(0, STAGE)
    spans: dict[str, Any] = {}
    x = X.clone()
    got = w.run(x, C, call=Calls(w.work.recipe).make(variant=STAGE), spans=spans)
    got.mul_(2.0)
    assert torch.equal(spans["body"].tokens, X)


def test_an_output_that_no_argument_stands_for() -> None:
    class Counting(DualBlock):
        def forward(self, hidden_states: Any, encoder_hidden_states: Any, temb: Any) -> Any:
            image, text = super().forward(hidden_states, encoder_hidden_states, temb)
            return image, text, image.mean((1, 2))

    with pytest.raises(SiteError, match="Counting returns as number 2 what none of its arguments stands for"):
        worked(1, STAGE, Counting(), HANDED)


def test_what_is_handed_on_must_have_the_shape_of_what_is_returned() -> None:
    swapped: Handed = ((0, "hidden_states"), (1, "temb"))
    with pytest.raises(
        SiteError, match="DualBlock returns as number 1 what none of its arguments stands for"
    ):
        worked(1, STAGE, DualBlock(), swapped)


def test_no_dead_code_is_left() -> None:
    w = worked(2, STAGE, DualBlock(), HANDED)
    kinds = {node.op for node in w.work.graph.nodes}
    assert kinds == {"placeholder", "call_function", "output"}
    assert isinstance(w.work.graph, fx.Graph)
