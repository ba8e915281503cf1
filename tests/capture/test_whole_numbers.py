"""Whole numbers that a trace knows, while all else is shapes."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from torch._subclasses.fake_tensor import DataDependentOutputException, FakeTensor, FakeTensorMode

from sdtm_fx.capture.blocks import capture_outer
from sdtm_fx.capture.whole_numbers import WholeNumbersKnown, whole_ones
from sdtm_fx.errors import HostReadError


@pytest.mark.parametrize("device", ["cpu", "meta"])
def test_what_follows_from_known_numbers_alone_is_known(device: str) -> None:
    with FakeTensorMode(), WholeNumbersKnown():
        mask = whole_ones((2, 5), torch.device(device))
        assert isinstance(mask, FakeTensor)
        assert mask.device.type == device
        assert mask.sum(dim=1).tolist() == [5, 5]
        assert int((mask * 3 - 1)[0, 0]) == 2
        assert mask.bool().cumsum(1).max().item() == 5
        moved = mask.to(device="meta", dtype=torch.int32)
        assert moved.dtype is torch.int32
        assert moved[:, :2].sum().item() == 4


def test_nothing_else_is_known() -> None:
    with FakeTensorMode(allow_non_fake_inputs=True), WholeNumbersKnown():
        mask, other = whole_ones((2, 5), torch.device("cpu")), torch.ones(2, 5, dtype=torch.int64)
        changed = whole_ones((2,), torch.device("cpu")) + 1
        changed.add_(other[:, 0])
        for unknown in (other.sum(), (mask + other).sum(), mask.float().sum()):
            with pytest.raises(DataDependentOutputException):
                unknown.item()


def test_numbers_that_are_written_into_stay_known_where_what_is_written_is() -> None:
    with FakeTensorMode(allow_non_fake_inputs=True), WholeNumbersKnown():
        mask = whole_ones((4,), torch.device("cpu"))
        part = mask[2:]
        part.fill_(0)
        assert mask.sum().item() == 2, "a view writes into the whole"
        part.copy_(torch.zeros(2, dtype=torch.int64))
        for spoilt in (mask, part, mask[:1]):
            with pytest.raises(DataDependentOutputException):
                spoilt.sum().item()
        assert whole_ones((3,), torch.device("cpu")).sum().item() == 3


def test_without_a_fake_mode_they_are_ones() -> None:
    assert torch.equal(whole_ones((2, 3), torch.device("cpu")), torch.ones(2, 3, dtype=torch.int64))


class Lengths(nn.Module):
    """Reads lengths in a module of its own, and asks which of them there are."""

    def forward(self, mask: torch.Tensor) -> list[int]:
        return mask.sum(dim=1).tolist()


class Padded(nn.Module):
    """Cuts every sample to its length; a mask goes in where they differ."""

    def __init__(self) -> None:
        super().__init__()
        self.lengths, self.blocks = Lengths(), nn.ModuleList([nn.Linear(4, 4)])

    def forward(self, x: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
        lengths = self.lengths(mask)
        if len(set(lengths)) > 1:
            raise AssertionError("all of one length")
        x = x.new_zeros(x.shape[0], max(lengths), 4) + x[:, : lengths[0]]
        for block in self.blocks:
            x = block(x)
        return x


def test_an_outer_graph_follows_lengths_that_are_known() -> None:
    captured = capture_outer(
        Padded(),
        ["blocks.0"],
        lambda: {"x": torch.ones(2, 9, 4), "mask": whole_ones((2, 6), torch.device("cpu"))},
    )
    assert captured.calls[0].leaves[0].shape == (2, 6, 4)


def test_an_outer_graph_does_not_know_other_lengths() -> None:
    mask = lambda: torch.ones(2, 6, dtype=torch.int64)  # noqa: E731
    with pytest.raises(HostReadError, match="the forward reads a value of a tensor on the host"):
        capture_outer(Padded(), ["blocks.0"], lambda: {"x": torch.ones(2, 9, 4), "mask": mask()})
