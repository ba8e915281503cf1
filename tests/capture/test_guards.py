"""Branches on values: recorded, checked, and traced again where another call takes the other branch."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from sdtm_fx.capture.guards import GuardFailed, expect
from tests.capture.tracing import assert_exact, replay, targets, trace


class LongOrShort(nn.Module):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        if x.shape[1] > 4:
            return x.mean(1, keepdim=True) + x
        return x * 2


def test_a_branch_on_a_size_is_recorded() -> None:
    block = LongOrShort()
    capture = trace(block, torch.ones(2, 8, 3))
    assert capture.guards == 1
    assert targets(capture, "call_function").count(expect) == 1
    assert_exact(capture, block, torch.randn(5, 6, 3))  # other sizes on the same side


def test_another_branch_raises_where_the_forward_branched() -> None:
    block = LongOrShort()
    capture = trace(block, torch.ones(2, 8, 3))
    with pytest.raises(GuardFailed, match="the traced forward saw True here, this call has False"):
        replay(capture, block, torch.ones(2, 3, 3))


class Rounds(nn.Module):
    def forward(self, x: torch.Tensor, n: int, s: float) -> torch.Tensor:
        for _ in range(int(n)):
            x = x + x[:, : int(x.shape[1] ** 0.5)].sum()
        return x * float(s) if s > 0 else x


def test_ints_floats_and_loops_are_guarded() -> None:
    block = Rounds()
    capture = trace(block, torch.ones(2, 9), 2, 0.5)
    assert_exact(capture, block, torch.randn(4, 9), 2, 0.5)
    for other in ((torch.ones(2, 16), 2, 0.5), (torch.ones(2, 9), 3, 0.5), (torch.ones(2, 9), 2, 0.25)):
        with pytest.raises(GuardFailed):
            replay(capture, block, *other)


def test_a_guard_is_no_dead_code() -> None:
    capture = trace(LongOrShort(), torch.ones(2, 8, 3))
    capture.graph.eliminate_dead_code()
    assert targets(capture, "call_function").count(expect) == 1


def test_a_branch_on_the_device_is_guarded() -> None:
    class OnMeta(nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return x * 2 if x.device.type == "meta" or x.is_cuda else x + 1

    block = OnMeta()
    capture = trace(block, torch.ones(2))
    assert_exact(capture, block, torch.randn(3))
    with pytest.raises(GuardFailed):
        replay(capture, block, torch.ones(2, device="meta"))


def test_expect_is_quiet_when_all_is_as_it_was() -> None:
    expect(3, 3)
    with pytest.raises(GuardFailed, match="saw 3 here, this call has 4"):
        expect(4, 3)
