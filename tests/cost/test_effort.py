"""Counting what code asks of a device."""

from __future__ import annotations

import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.nn import functional as F

from sdtm_fx.cost.effort import Effort, EffortCounter
from sdtm_fx.cost.extra import fit_extra
from sdtm_fx.methods import SSM, LocalMatch, Method
from sdtm_fx.methods.base import TokenView

X = torch.zeros(2, 6, 8)  # 96 numbers, 384 bytes


def counted(run: object) -> Effort:
    counter = EffortCounter()
    with torch.no_grad(), counter.counting():
        run()  # type: ignore[operator]
    return counter.effort


@pytest.mark.parametrize(
    ("run", "effort"),
    [
        (lambda: X + X, Effort(streamed=3 * 384, launches=1)),
        (lambda: X.view(12, 8).transpose(0, 1)[None], Effort()),
        (lambda: X.transpose(1, 2).contiguous(), Effort(streamed=2 * 384, launches=1)),
        (lambda: F.gelu(X), Effort(activated=96, launches=1)),
        (lambda: X.index_select(1, torch.arange(3)), Effort(gathered=2 * 192 + 24, streamed=24, launches=2)),
        (lambda: torch.sort(X.view(-1, 16), dim=1), Effort(sorted=96 * 4, launches=1)),
        (lambda: F.linear(X, torch.zeros(4, 8)), Effort(linear=12 * 32, streamed=128, launches=2)),
        (
            lambda: F.scaled_dot_product_attention(X[None], X[None], X[None]),
            Effort(attention=2 * 96 * 6, launches=1),
        ),
        (lambda: X @ X.transpose(1, 2), Effort(attention=72 * 8, launches=1)),
    ],
)
def test_operations_count_where_they_keep_the_device_busy(run: object, effort: Effort) -> None:
    assert counted(run) == effort


@pytest.mark.parametrize("method", [SSM(), LocalMatch()])
def test_fake_tensors_count_as_real_ones(method: Method) -> None:
    def plan() -> None:
        plan = method.plan(TokenView(torch.zeros(1, 16, 8), (4, 4)), 6)
        plan.unmerge(plan.merge(torch.zeros(1, 16, 8)))

    real = counted(plan)
    with FakeTensorMode():
        assert counted(plan) == real
    assert min(real.streamed, real.gathered, real.sorted, real.launches) > 0


def test_sums_differences_and_multiples() -> None:
    one = Effort(linear=1, streamed=2, launches=3)
    assert one + one == one * 2
    assert one * 2 - one == one


def test_a_line_through_two_counts_scales_to_other_sizes() -> None:
    def added(tokens: int, remove: int, batch: int) -> Effort:
        return Effort(streamed=4.0 * batch * (10 * tokens - 3 * remove), launches=5)

    extra = fit_extra({4: added(16, 4, 2), 8: added(16, 8, 2)}, Effort(streamed=256, launches=2), 16, 2, 4)
    other = extra.spent(64, 3, 4) - extra.saved(20, 3, 4)
    assert other == added(64, 20, 3)
    half = extra.spent(64, 3, 2) - extra.saved(20, 3, 2)
    assert half.streamed == pytest.approx(other.streamed / 2), "half precision moves half the bytes"
    assert half.launches == 5
    assert extra.storing(64, 2, 4) == Effort(streamed=1024, launches=2)


def test_of_one_count_what_weighs_more_counts() -> None:
    extra = fit_extra({16: Effort(streamed=-320, gathered=160, launches=-2)}, Effort(), 16, 1, 4)
    assert extra.saved(16, 1, 4) == Effort(streamed=320, launches=2)
    assert extra.spent(16, 1, 4) == Effort(gathered=160)
