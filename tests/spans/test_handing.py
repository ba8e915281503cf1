"""What blocks hand on to the next one, read off a model's own graph."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import fx, nn

from sdtm_fx.errors import SiteError
from sdtm_fx.recipe.span import SpanSpec
from sdtm_fx.rewriting.handing import Handed, handed_on

SPAN = SpanSpec(id="body", first=0, last=-1, output=1)


class Block(nn.Module):
    def forward(self, hidden_states: Any, text: Any = None, temb: Any = None) -> Any:
        return text + temb, hidden_states + temb


class Alone(nn.Module):
    def forward(self, hidden_states: Any, temb: Any = None) -> Any:
        return hidden_states + temb


class Tracer(fx.Tracer):
    def is_leaf_module(self, module: nn.Module, name: str) -> bool:
        return isinstance(module, Block | Alone)


class Model(nn.Module):
    def __init__(
        self, flow: Callable[[list[Any], Any, Any, Any], Any], block: type[nn.Module] = Block
    ) -> None:
        super().__init__()
        self.blocks, self.flow = nn.ModuleList(block() for _ in range(3)), flow

    def forward(self, x: torch.Tensor, text: torch.Tensor, temb: torch.Tensor) -> Any:
        return self.flow(list(self.blocks), x, text, temb)


def handed(
    flow: Callable[..., Any], span: SpanSpec = SPAN, block: type[nn.Module] = Block
) -> tuple[Handed, ...]:
    model = Model(flow, block)
    nodes = [node for node in Tracer().trace(model).nodes if node.op == "call_module"]
    assert len(nodes) == 3
    return handed_on(model, span, nodes)


def plain(blocks: list[Any], x: Any, text: Any, temb: Any) -> Any:
    for block in blocks:
        text, x = block(x, text=text, temb=temb)
    return x


def test_each_output_is_found_as_the_argument_that_it_becomes() -> None:
    assert handed(plain) == (((0, "text"), (1, "hidden_states")),) * 3  # the last one as the one before


def test_blocks_that_return_the_tokens_alone() -> None:
    def flow(blocks: list[Any], x: Any, text: Any, temb: Any) -> Any:
        for block in blocks:
            x = block(x, temb)
        return x

    alone = SpanSpec(id="body", first=0, last=-1)
    assert handed(flow, alone, Alone) == (((None, "hidden_states"),),) * 3


def test_what_nobody_gets_is_not_handed_on() -> None:
    def flow(blocks: list[Any], x: Any, text: Any, temb: Any) -> Any:
        for block in blocks:
            x = block(x, text=text, temb=temb)[1]
        return x

    assert handed(flow) == (((1, "hidden_states"),),) * 3


def test_a_span_of_one_block_hands_nothing_on() -> None:
    model = Model(plain)
    (first, *_) = (node for node in Tracer().trace(model).nodes if node.op == "call_module")
    with pytest.raises(
        SiteError, match=r"the model reads output 0 of blocks\.0, the last block, beside the image"
    ):
        handed_on(model, SPAN, [first])
    *_, last = (node for node in Tracer().trace(model).nodes if node.op == "call_module")
    assert handed_on(model, SPAN, [last]) == ((),)


def test_text_that_is_read_between_blocks_is_refused() -> None:
    def flow(blocks: list[Any], x: Any, text: Any, temb: Any) -> Any:
        seen = []
        for block in blocks:
            text, x = block(x, text=text, temb=temb)
            seen.append(text.mean())
        return x, seen[0]

    with pytest.raises(
        SiteError,
        match=r"between blocks.0 and blocks.1 the model reads output 0 \(mean\); a block that is forecast",
    ):
        handed(flow)


def test_text_that_is_read_behind_the_span_is_refused() -> None:
    def flow(blocks: list[Any], x: Any, text: Any, temb: Any) -> Any:
        x = plain(blocks[:2], x, text, temb)
        text, x = blocks[2](x, text=text, temb=temb)
        return x, text

    with pytest.raises(
        SiteError, match=r"the model reads output 0 of blocks.2, .*\(output\); what is forecast is the"
    ):
        handed(flow)
