"""What a forward assigns while it is traced is taken back, and tables of earlier calls may stand in an outer graph."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn

from sdtm_fx.capture.arguments import Signature, flatten
from sdtm_fx.capture.blocks import capture_block, capture_outer
from sdtm_fx.errors import CaptureError


class Table:
    """Makes its table on the first call."""

    rows: torch.Tensor | None = None

    def of(self, like: torch.Tensor) -> torch.Tensor:
        if self.rows is None:
            self.rows = torch.arange(3) * like.new_ones(3)
        return self.rows


class Model(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.table, self.calls = Table(), 0
        self.blocks = nn.ModuleDict({"2-1": nn.Linear(3, 3)})

    def forward(self, x: torch.Tensor, patch: int = 2) -> torch.Tensor:
        self.calls += 1
        self.last = x
        return self.blocks[f"{patch}-1"](x + self.table.of(x))


def example() -> dict[str, Any]:
    return {"x": torch.zeros(2, 3), "patch": 2}


def test_a_model_keeps_its_own_attributes() -> None:
    model = Model()
    captured = capture_outer(model, ["blocks.2-1"], example)
    assert [str(call.path) for call in captured.calls] == ["blocks.2-1"]
    assert (model.calls, model.table.rows, hasattr(model, "last")) == (0, None, False)


def test_a_table_of_an_earlier_call_stands_in_the_outer_graph() -> None:
    model = Model()
    with torch.no_grad():
        model(torch.zeros(2, 3))
    rows = model.table.rows
    capture_outer(model, ["blocks.2-1"], example)
    assert model.table.rows is rows
    assert (model.calls, tuple(model.last.shape)) == (1, (2, 3))


def test_a_table_does_not_stand_in_the_graph_of_a_block() -> None:
    model = Model()
    with torch.no_grad():
        model(torch.zeros(2, 3))
    key, leaves = flatten(Signature.of(Model.forward).bind((), example()))
    with pytest.raises(CaptureError, match=r"makes a constant tensor of shape \(3,\)"):
        capture_block(model, key, leaves)


def test_a_number_in_text_is_a_guard() -> None:
    model = Model()
    key, leaves = flatten(Signature.of(Model.forward).bind((), example()))
    captured = capture_block(model, key, leaves)
    assert captured.guards == 1
    assert any(node.target == "blocks.2-1" for node in captured.graph.nodes)
