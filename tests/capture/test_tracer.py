"""The value-carrying tracer on small modules, one idea of forwards at a time."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from sdtm_fx.errors import CaptureError
from tests.capture.tracing import assert_exact, replay, targets, trace


class ByRankAndDtype(nn.Module):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        if x.ndim == 2:
            x = x[:, None]
        if x.dtype == torch.float16:
            x = x.clip(-1, 1)
        return x.dim() * x


def test_branches_on_rank_and_dtype_are_taken_without_guards() -> None:
    block = ByRankAndDtype()
    flat, half = trace(block, torch.ones(2, 3)), trace(block, torch.ones(2, 3, 4, dtype=torch.float16))
    assert flat.guards == half.guards == 0
    assert "clip" not in targets(flat, "call_method")
    assert "clip" in targets(half, "call_method")
    assert_exact(flat, block, torch.randn(5, 7))


class Sizes(nn.Module):
    def forward(self, x: torch.Tensor) -> tuple[torch.Tensor, ...]:
        batch, tokens, width = x.shape
        total = 0
        for size in x.shape:
            total = total + size
        return (
            x.reshape(batch * tokens, width),
            x.view(*x.shape[:2], -1, 2),
            x / total,
            x.flatten(0, len(x.shape) - 2),
        )


def test_sizes_are_recorded_so_other_sizes_are_exact() -> None:
    block = Sizes()
    capture = trace(block, torch.ones(2, 3, 4))
    assert capture.guards == 0
    assert_exact(capture, block, torch.randn(5, 7, 6))


class Factories(nn.Module):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        place = torch.arange(x.shape[1], dtype=x.dtype)
        mask = torch.ones(x.shape[0], x.shape[1], dtype=torch.bool)
        noise = torch.zeros_like(x) + torch.full((x.shape[1], 1), 2.0) + torch.tensor(3.0)
        return torch.cat([x * place[:, None], torch.where(mask[..., None], noise, x)], dim=1)


def test_tensor_factories_are_recorded() -> None:
    block = Factories()
    capture = trace(block, torch.ones(2, 3, 4))
    assert {torch.arange, torch.ones, torch.zeros_like, torch.full, torch.tensor} <= set(
        targets(capture, "call_function")
    )
    assert_exact(capture, block, torch.randn(3, 5, 2))


class OnItsDevice(nn.Module):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x + torch.arange(x.shape[-1], device=x.device)


def test_devices_are_recorded_so_a_model_may_move() -> None:
    block = OnItsDevice()
    capture = trace(block, torch.ones(2, 3))
    assert replay(capture, block, torch.ones(4, 5, device="meta")).device.type == "meta"
    assert_exact(capture, block, torch.randn(4, 5))


class Constant(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.table = [torch.arange(3.0)]

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x + self.table[0]


def test_a_constant_tensor_would_be_frozen_and_is_refused() -> None:
    with pytest.raises(
        CaptureError, match=r"Constant\.forward makes a constant tensor of shape \(3,\) that is neither"
    ):
        trace(Constant(), torch.ones(2, 3))


class Inner(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.full((4,), 3.0))
        self.register_buffer("shift", torch.full((4,), 0.5))
        self.linear = nn.Linear(4, 4)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.linear(x) * self.scale + self.shift


class Outer(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.inner = Inner()
        self.gain = nn.Parameter(torch.full((1,), 2.0))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x + self.gain * self.inner(x)


def test_modules_are_leaves_unless_opened() -> None:
    block = Outer()
    closed, opened = trace(block, torch.ones(2, 4)), trace(block, torch.ones(2, 4), opened=("inner",))
    assert targets(closed, "call_module") == ["inner"]
    assert targets(closed, "get_attr") == ["gain"]
    assert targets(opened, "call_module") == ["inner.linear"]
    assert sorted(targets(opened, "get_attr")) == ["gain", "inner.scale", "inner.shift"]
    assert_exact(closed, block, torch.randn(3, 4))
    assert_exact(opened, block, torch.randn(3, 4))


def test_one_graph_serves_other_blocks_with_their_own_weights() -> None:
    first, second = Outer(), Outer()
    nn.init.constant_(second.gain, -1.0)
    capture, x = trace(first, torch.ones(2, 4), opened=("inner",)), torch.randn(3, 4)
    assert torch.equal(replay(capture, second, x), second(x))
    assert not torch.equal(replay(capture, second, x), first(x))


def test_the_calls_of_leaf_modules_are_kept_with_their_arguments() -> None:
    capture = trace(Outer(), torch.ones(2, 4))
    ((node, (args, kwargs)),) = capture.calls.items()
    assert node.target == "inner"
    assert args[0].shape == (2, 4)
    assert kwargs == {}


class Stranger(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.hidden = [nn.Linear(4, 4)]

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.hidden[0](x)


def test_a_module_outside_the_tree_is_refused() -> None:
    with pytest.raises(CaptureError, match="Linear is called but is not part of Stranger"):
        trace(Stranger(), torch.ones(2, 4))


class Options(nn.Module):
    def forward(self, x: torch.Tensor, config: dict[str, Any], pair: tuple[Any, ...]) -> torch.Tensor:
        if config["mode"] == "double":
            x = x * 2
        if config["flag"] and config.get("missing") is None and "mode" in config:
            x = x + 1
        if pair[1] is None:
            x = x - pair[0]
        return x * config["nested"]["scale"]


def test_none_text_and_flags_in_nested_arguments_are_plain() -> None:
    block, x = Options(), torch.ones(2, 3)
    config = {"mode": "double", "flag": True, "nested": {"scale": torch.full((1,), 2.0)}}
    capture = trace(block, x, config, (torch.ones(1), None))
    assert capture.guards == 0
    assert_exact(capture, block, torch.randn(4, 3), config, (torch.full((1,), 5.0), None))
    other = trace(block, x, config | {"mode": "single"}, (torch.ones(1), None))
    assert str(other.graph) != str(capture.graph)


class Sided(nn.Module):
    def forward(self, x: torch.Tensor) -> tuple[Any, ...]:
        return x, None, "left", True, {"y": x + 1, "z": None}


class TakesItems(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.sided = Sided()

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        a, none, side, flag, rest = self.sided(x)
        if none is None and side == "left" and flag and rest["z"] is None and "y" in rest:
            for key in rest.keys():  # noqa: SIM118 - the method is what is tested
                if key == "y":
                    a = a + rest[key]
        return a + sum(v for _, v in rest.items() if v is not None)


def test_none_text_and_flags_from_leaf_modules_are_plain() -> None:
    block = TakesItems()
    capture = trace(block, torch.ones(2, 3))
    assert capture.guards == 0
    assert_exact(capture, block, torch.randn(5, 4))


class Numbers(nn.Module):
    def forward(self, x: torch.Tensor, height: int, width: int, scale: float = 1.0) -> torch.Tensor:
        return x.unflatten(1, (height, width)) * scale


def test_ints_and_floats_are_placeholders() -> None:
    block = Numbers()
    capture = trace(block, torch.ones(2, 6, 4), 2, 3)
    assert targets(capture, "placeholder") == ["x", "height", "width", "scale"]
    assert capture.guards == 0
    assert_exact(capture, block, torch.randn(2, 20, 4), 4, 5, scale=0.5)


class InPlace(nn.Module):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = x.clone()
        y[:, 0] = 0
        y[..., -1] += 1
        y.mul_(2)
        return y


def test_work_in_place_is_recorded() -> None:
    block = InPlace()
    capture = trace(block, torch.ones(2, 3))
    assert_exact(capture, block, torch.randn(4, 5))


def test_a_trace_does_not_write_to_its_example() -> None:
    class Writes(nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            x[:] = 7
            return x

    example = torch.zeros(2, 3)
    trace(Writes(), example)
    assert torch.equal(example, torch.zeros(2, 3))


class OddNames(nn.Module):
    def forward(
        self, ctx: torch.Tensor, x: tuple[Any, ...], x_0: torch.Tensor, kw: dict[str, Any]
    ) -> torch.Tensor:
        return ctx + x[0] * x_0 + kw["a.b"] - kw["class"]


def test_arguments_may_have_any_name() -> None:
    block, one = OddNames(), torch.ones(2)
    capture = trace(block, one, (one,), one, {"a.b": one, "class": one})
    a, b, c, d, e = torch.randn(5, 2)
    assert_exact(capture, block, a, (b,), c, {"a.b": d, "class": e})


class Raises(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.inner = Inner()

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.inner(x) * 2
        raise ValueError("not today")


def test_a_failing_forward_is_named_with_the_place() -> None:
    with pytest.raises(
        CaptureError, match=r"Raises\.forward cannot be traced: ValueError: not today \(after node %mul"
    ):
        trace(Raises(), torch.ones(2, 4))


PATCHED = {
    name: getattr(torch, name)
    for name in ("ones", "arange", "cat", "stack", "is_tensor", "tensor", "full_like")
}


@pytest.mark.parametrize("block", [Raises(), Outer()], ids=["failed", "succeeded"])
def test_torch_and_the_module_are_left_as_they_were(block: nn.Module) -> None:
    call, getattribute, attention = nn.Module.__call__, nn.Module.__getattr__, F.scaled_dot_product_attention
    state = {k: v.clone() for k, v in block.state_dict().items()}
    instance = {name: dict(m.__dict__) for name, m in block.named_modules()}
    try:
        trace(block, torch.ones(2, 4), opened=("inner",))
    except CaptureError:
        assert isinstance(block, Raises)
    assert {name: getattr(torch, name) for name in PATCHED} == PATCHED
    assert nn.Module.__call__ is call
    assert nn.Module.__getattr__ is getattribute
    assert F.scaled_dot_product_attention is attention
    assert {name: dict(m.__dict__) for name, m in block.named_modules()} == instance
    assert all(torch.equal(v, state[k]) for k, v in block.state_dict().items())
    assert isinstance(torch.cat([torch.ones(1), torch.ones(1)]), torch.Tensor)


def test_instance_forwards_are_put_back_after_a_failure() -> None:
    block = Raises()
    wrapper = block.inner.forward
    block.inner.forward = wrapper
    with pytest.raises(CaptureError):
        trace(block, torch.ones(2, 4))
    assert block.inner.__dict__["forward"] is wrapper


def scale_by(x: torch.Tensor, factor: float) -> torch.Tensor:
    """Something to keep as one node."""
    return x * factor * factor


class Calls(nn.Module):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return scale_by(x, 3.0) + 1


def test_an_opaque_function_is_one_node() -> None:
    block = Calls()
    assert scale_by not in targets(trace(block, torch.ones(2)), "call_function")
    capture = trace(block, torch.ones(2), opaque=(scale_by,))
    assert targets(capture, "call_function")[0].__name__ == "scale_by"
    assert_exact(capture, block, torch.randn(3))
    assert Calls.forward.__globals__["scale_by"] is scale_by


def test_attributes_become_nodes_when_used() -> None:
    class Transposed(nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return x @ x.mT

    block = Transposed()
    capture = trace(block, torch.ones(2, 3))
    assert getattr in targets(capture, "call_function")
    assert_exact(capture, block, torch.randn(4, 5))


def test_slices_and_unpacking_carry_values() -> None:
    class Splits(nn.Module):
        def forward(self, x: torch.Tensor, n: int) -> torch.Tensor:
            a, b = x.chunk(2, dim=-1)
            parts = x.split([n, x.shape[1] - n], dim=1)
            return a[:, :n] * b[:, :n] + parts[0][..., : a.size(-1)] + len(parts)

    block = Splits()
    capture = trace(block, torch.ones(2, 5, 4), 2)
    assert capture.guards == 0
    assert_exact(capture, block, torch.randn(3, 9, 6), 4)


def test_every_node_carries_its_example_value() -> None:
    capture = trace(Outer(), torch.ones(2, 4))
    assert all("val" in n.meta for n in capture.graph.nodes if n.op != "output")


def test_a_parameter_of_another_module_is_a_constant() -> None:
    foreign = nn.Parameter(torch.ones(3))

    class Borrows(nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return x * foreign

    with pytest.raises(CaptureError, match="constant tensor"):
        trace(Borrows(), torch.ones(2, 3))
