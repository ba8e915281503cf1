"""Multiply-accumulates counted by hand, and against torch's own counter."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import nn
from torch.nn import functional as F
from torch.utils.flop_counter import FlopCounterMode

from sdtm_fx.cost.counter import MacCounter, Macs
from tests.capture.tracing import trace
from tests.pipelines import tiny_sd3_transformer
from tests.zoo import ZOO, build, sd3_inputs

B, L, T, D, OUT, H = 2, 6, 5, 8, 3, 4


def count(run: Callable[[], object]) -> Macs:
    with MacCounter() as counter:
        run()
    return counter.macs


X, W = torch.zeros(B, L, D), torch.zeros(OUT, D)
LINEAR: dict[str, tuple[Callable[[], object], int]] = {
    "linear": (lambda: F.linear(X, W), B * L * D * OUT),
    "linear with bias": (lambda: F.linear(X, weight=W, bias=torch.zeros(OUT)), B * L * D * OUT),
    "linear module": (lambda: nn.Linear(D, OUT)(X), B * L * D * OUT),
    "linear, strided": (lambda: F.linear(X[:, ::2], W), B * L // 2 * D * OUT),
    "conv1d": (lambda: nn.Conv1d(3, 4, 5)(torch.zeros(B, 3, 9)), B * 4 * 5 * 3 * 5),
    "conv2d": (lambda: nn.Conv2d(4, 6, 2, stride=2)(torch.zeros(B, 4, 8, 6)), B * 6 * 4 * 3 * 4 * 4),
    "conv2d, grouped": (
        lambda: nn.Conv2d(4, 4, 3, padding=1, groups=4)(torch.zeros(B, 4, 5, 5)),
        B * 4 * 25 * 9,
    ),
    "conv3d": (lambda: nn.Conv3d(1, 2, 2)(torch.zeros(1, 1, 3, 3, 3)), 2 * 8 * 8),
}
Q, K = torch.zeros(B, H, L, D), torch.zeros(B, H, T, D)
V = torch.zeros(B, H, T, OUT)
OTHER: dict[str, tuple[Callable[[], object], int]] = {
    "attention": (lambda: F.scaled_dot_product_attention(Q, K, K), 2 * B * H * L * T * D),
    "attention, narrow values": (lambda: F.scaled_dot_product_attention(Q, K, V), B * H * L * T * (D + OUT)),
    "attention, by name": (
        lambda: F.scaled_dot_product_attention(query=Q, key=K, value=K),
        2 * B * H * L * T * D,
    ),
    "bmm": (lambda: torch.bmm(X, X.mT), B * L * L * D),
    "matmul": (lambda: X @ X.mT, B * L * L * D),
    "matmul method": (lambda: X.matmul(X.mT), B * L * L * D),
    "matmul, broadcast": (lambda: torch.matmul(Q, torch.zeros(D, OUT)), B * H * L * D * OUT),
    "baddbmm": (lambda: torch.baddbmm(torch.zeros(B, L, L), X, X.mT), B * L * L * D),
    "einsum": (lambda: torch.einsum("bld,bmd->blm", X, X), B * L * L * D),
    "einsum, spaced": (
        lambda: torch.einsum("b h l d, d o -> b h l o", Q, torch.zeros(D, OUT)),
        B * H * L * D * OUT,
    ),
    "einsum, permutation": (lambda: torch.einsum("bld->dbl", X), 0),
}
FREE: dict[str, Callable[[], object]] = {
    "add": lambda: X + X,
    "mul": lambda: X * X,
    "norm": lambda: nn.LayerNorm(D)(X),
    "softmax": lambda: X.softmax(-1),
    "gather": lambda: X.index_select(1, torch.zeros(3, dtype=torch.long)),
}


@pytest.mark.parametrize(("run", "macs"), LINEAR.values(), ids=LINEAR)
def test_linear_layers_count_in_both_conventions(run: Callable[[], object], macs: int) -> None:
    assert count(run) == Macs(macs, macs)


@pytest.mark.parametrize(("run", "macs"), OTHER.values(), ids=OTHER)
def test_products_count_in_the_total_only(run: Callable[[], object], macs: int) -> None:
    assert count(run) == Macs(0.0, macs)


@pytest.mark.parametrize("run", FREE.values(), ids=FREE)
def test_everything_else_is_free(run: Callable[[], object]) -> None:
    assert count(run) == Macs()


@pytest.mark.parametrize("name", ["sd3", "sd3.5", "flux", "pixart"])
def test_the_total_of_a_model_is_half_of_torchs_flops(name: str) -> None:
    model, inputs = build(name).to("meta"), ZOO[name].inputs(2, (4, 6), 5)
    call = {k: v.to("meta") if isinstance(v, torch.Tensor) else v for k, v in inputs.items()}
    with torch.no_grad(), FlopCounterMode(display=False) as flops:
        model(**call)
    with torch.no_grad():
        macs = count(lambda: model(**call))
    assert macs.total == flops.get_total_flops() / 2
    assert 0 < macs.linear < macs.total


def test_real_fake_and_meta_tensors_count_alike() -> None:
    model, inputs = tiny_sd3_transformer(), sd3_inputs(1, (4, 4), 5)
    with torch.no_grad():
        real = count(lambda: model(**inputs))
        meta = count(
            lambda: model.to("meta")(
                **{k: v.to("meta") if torch.is_tensor(v) else v for k, v in inputs.items()}
            )
        )
    assert real == meta


def test_a_trace_counts_each_operation_once() -> None:
    block = nn.Linear(D, OUT)
    assert count(lambda: trace(block, X)) == Macs(B * L * D * OUT, B * L * D * OUT)


def test_watching_tells_modules_apart() -> None:
    outer = nn.Sequential(nn.Linear(D, OUT), nn.Linear(OUT, D))
    with MacCounter() as counter, counter.watching({"all": outer, "second": outer[1]}):
        outer(X)
        X @ X.mT
    assert counter.inside["second"] == Macs(B * L * D * OUT, B * L * D * OUT)
    assert counter.inside["all"] == Macs(2 * B * L * D * OUT, 2 * B * L * D * OUT)
    assert counter.macs.attention == B * L * L * D
    assert not outer._forward_hooks
    assert not outer[1]._forward_pre_hooks


def test_nothing_is_counted_outside() -> None:
    with MacCounter() as counter:
        pass
    F.linear(X, W)
    assert counter.macs == Macs()


def test_macs_add_subtract_and_scale() -> None:
    one, other = Macs(1.0, 3.0), Macs(2.0, 7.0)
    assert one + other == Macs(3.0, 10.0)
    assert other - one == Macs(1.0, 4.0)
    assert one * 2 == Macs(2.0, 6.0)
    assert other.attention == 5.0


@pytest.mark.parametrize(
    ("run", "expected"),
    [
        (lambda a, b: torch.einsum("...ij,...jk->...ik", a, b), 2 * 3 * 4 * 5 * 6),
        (lambda a, b: torch.einsum("xyij,yjk->xyik", [a, b[0]]), 2 * 3 * 4 * 5 * 6),
        (lambda a, b: torch.matmul(input=a, other=b), 2 * 3 * 4 * 5 * 6),
        (lambda a, b: a[0, 0].mm(b[0, 0]), 4 * 5 * 6),
        (lambda a, b: torch.addmm(torch.zeros(4, 6), a[0, 0], b[0, 0]), 4 * 5 * 6),
        (lambda a, b: F.scaled_dot_product_attention(a, key=a, value=a), 2 * 3 * 4 * 4 * (5 + 5)),
    ],
)
def test_products_however_they_are_written(run: Callable[..., object], expected: int) -> None:
    a, b = torch.randn(2, 3, 4, 5), torch.randn(2, 3, 5, 6)
    with MacCounter() as counter:
        run(a, b)
    assert counter.macs.total == expected
    assert counter.macs.linear == 0
