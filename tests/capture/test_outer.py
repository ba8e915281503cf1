"""The outer graph: blocks as leaves, and what a model must not do to have one."""

from __future__ import annotations

import re

import pytest
import torch
from torch import nn

from sdtm_fx.capture.blocks import capture_outer
from sdtm_fx.capture.hooked import hooks_bypassed, is_hooked
from sdtm_fx.errors import CaptureError


class Block(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.ff = nn.Linear(4, 4)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x + self.ff(x)


class Group(nn.Module):
    """Blocks one level down, as in a U-Net."""

    def __init__(self) -> None:
        super().__init__()
        self.blocks = nn.ModuleList([Block(), Block()])

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        for block in self.blocks:
            x = block(x)
        return x


class Model(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.groups = nn.ModuleList([Group(), Group()])
        self.spare = Block()

    def forward(self, x: torch.Tensor, skip: bool = False) -> torch.Tensor:
        for group in self.groups if not skip else self.groups[1:]:
            x = group(x)
        return x


def test_blocks_inside_other_modules_are_found() -> None:
    paths = ["groups.0.blocks.0", "groups.1.blocks.1"]
    outer = capture_outer(Model(), paths, lambda: {"x": torch.ones(2, 3, 4)})
    assert [c.path for c in outer.calls] == paths
    called = [n.target for n in outer.graph.nodes if n.op == "call_module"]
    assert called == [f"groups.{i}.blocks.{j}" for i in range(2) for j in range(2)]


def test_a_module_without_blocks_inside_stays_closed() -> None:
    outer = capture_outer(Model(), ["groups.0.blocks.0"], lambda: {"x": torch.ones(2, 3, 4)})
    called = [n.target for n in outer.graph.nodes if n.op == "call_module"]
    assert called == ["groups.0.blocks.0", "groups.0.blocks.1", "groups.1"]


@pytest.mark.parametrize(
    ("paths", "missing"),
    [
        (["spare", "groups.1.blocks.0"], "spare"),
        (["groups.0.blocks.1", "groups.1.blocks.0"], "groups.0.blocks.1"),
    ],
)
def test_a_block_that_is_not_called_is_an_error(paths: list[str], missing: str) -> None:
    with pytest.raises(
        CaptureError, match=rf"blocks are not called by Model\.forward: {re.escape(missing)}$"
    ):
        capture_outer(Model(), paths, lambda: {"x": torch.ones(2, 3, 4), "skip": True})


class ReadsValues(Model):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.groups[0](x) * x.sum().item()


def test_reading_a_value_on_the_host_is_said_to_be_the_reason() -> None:
    with pytest.raises(CaptureError, match="the forward reads a value of a tensor on the host"):
        capture_outer(ReadsValues(), ["groups.0"], lambda: {"x": torch.ones(2, 3, 4)})


def test_instance_forwards_do_not_run_while_tracing() -> None:
    model = Model()

    def moves_weights(x: torch.Tensor) -> torch.Tensor:
        raise AssertionError("an offload hook ran")

    model.groups[0].blocks[0].forward = moves_weights
    outer = capture_outer(model, ["groups.0.blocks.0"], lambda: {"x": torch.ones(2, 3, 4)})
    assert len(outer.calls) == 1
    assert model.groups[0].blocks[0].forward is moves_weights


def test_bypassed_hooks_come_back_after_an_error() -> None:
    module = Block()
    module.forward = marker = lambda x: x
    with pytest.raises(RuntimeError, match="inside"), hooks_bypassed(module):
        assert "forward" not in module.__dict__
        raise RuntimeError("inside")
    assert module.forward is marker


def test_what_counts_as_hooked() -> None:
    plain, wrapped, before, after = (nn.Linear(2, 2) for _ in range(4))
    wrapped.forward = plain.forward
    before.register_forward_pre_hook(lambda *_: None)
    handle = after.register_forward_hook(lambda *_: None)
    assert [is_hooked(m) for m in (plain, wrapped, before, after)] == [False, True, True, True]
    handle.remove()
    assert not is_hooked(after)


class Twice(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.blocks = nn.ModuleList([Block()])

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.blocks[0](self.blocks[0](x))


def test_a_block_that_is_called_twice_is_refused() -> None:
    with pytest.raises(CaptureError, match=r"Twice\.forward calls blocks\.0 more than once"):
        capture_outer(Twice(), ["blocks.0"], lambda: {"x": torch.ones(2, 3, 4)})
