"""Which modules are of equal construction, so that one trace serves them."""

from __future__ import annotations

import functools
from collections.abc import Callable

import pytest
import torch
from diffusers import FluxTransformer2DModel
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode

import sdtm_fx
from sdtm_fx.capture.construction import construction, leaf_construction
from sdtm_fx.rewriting import programs
from tests.user.cases import the_rewriting


class Scale:
    """A callable of Python, as attention processors are."""

    def __init__(self, factor: float) -> None:
        self.factor = factor

    def __call__(self, x: Tensor) -> Tensor:
        return x * self.factor


class Block(nn.Module):
    def __init__(self, width: int = 4, factor: float = 2.0) -> None:
        super().__init__()
        self.to_v = nn.Linear(width, width)
        self.to_out = nn.ModuleList([nn.Linear(width, width), nn.Dropout(0.0)])
        self.processor = Scale(factor)
        self.sizes = [width, (width, {"deep": width})]
        self.register_buffer("steps", torch.zeros(3), persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        return self.processor(self.to_out[0](self.to_v(x)))


def test_weights_do_not_matter() -> None:
    one, other = Block(), Block()
    assert not torch.equal(one.to_v.weight, other.to_v.weight)
    assert construction(one) is not None
    assert construction(one) == construction(other)
    assert hash(construction(one)) == hash(construction(other))


def _tied(block: Block) -> None:
    block.to_out[0].weight = block.to_v.weight


def _set(path: str, name: str, value: object) -> Callable[[Block], None]:
    return lambda block: setattr(block.get_submodule(path), name, value)


@pytest.mark.parametrize(
    "change",
    [
        _set("", "processor", Scale(3.0)),
        _set("", "processor", torch.relu),
        _set("", "sizes", [4, (4, {"deep": 5})]),
        _set("", "sizes", [4, (4, {"deep": 4.0})]),
        _set("", "sizes", [4, (4, {"deep": True})]),
        _set("", "added", None),
        _set("to_out.1", "p", 0.5),
        _set("to_out.1", "p", -0.0),
        _set("to_out.1", "training", False),
        _set("to_v", "bias", None),
        _set("to_v", "weight", nn.Parameter(torch.zeros(4, 5))),
        _set("to_v", "weight", nn.Parameter(torch.zeros(4, 4).T)),
        _set("to_v", "weight", nn.Parameter(torch.zeros(4, 4), requires_grad=False)),
        _set("to_v", "weight", nn.Parameter(torch.zeros(4, 4, dtype=torch.bfloat16))),
        _set("to_v", "weight", nn.Parameter(torch.zeros(4, 4, device="meta"))),
        lambda block: block.to_v.register_forward_hook(lambda module, args, output: output),
        lambda block: setattr(block.to_v, "forward", block.to_out.forward),
        _tied,
    ],
)
def test_all_else_does(change: Callable[[Block], None]) -> None:
    changed = Block()
    change(changed)
    assert construction(changed) is not None
    assert construction(changed) != construction(Block())


def test_tied_weights_are_equal_to_tied_weights() -> None:
    one, other = Block(), Block()
    _tied(one)
    _tied(other)
    assert construction(one) == construction(other)


@pytest.mark.parametrize(
    "value", [torch.zeros(2), functools.partial(max, 1), object(), torch.Generator(), {object()}]
)
def test_what_cannot_be_compared_is_not(value: object) -> None:
    block = Block()
    block.added = value
    assert construction(block) is None


class Quantized(Tensor):
    """Stands for a weight whose values are packed elsewhere."""


def test_quantized_weights_are_not_compared() -> None:
    block = Block()
    block.to_v.weight = nn.Parameter(torch.zeros(4, 4).as_subclass(Quantized), requires_grad=False)
    assert construction(block) is None


def test_arguments() -> None:
    with FakeTensorMode() as mode:
        x, y = torch.zeros(2, 3), torch.ones(2, 3)
    assert leaf_construction([x, 1]) == leaf_construction([y, 1])
    assert leaf_construction([x, 1]) != leaf_construction([y, 2])
    assert leaf_construction([x, 1]) != leaf_construction([y, 1.0])
    assert leaf_construction([x, x]) != leaf_construction([x, y])
    assert leaf_construction([x]) != leaf_construction([torch.zeros(2, 3)]), "fake ones are kept apart"
    assert leaf_construction([torch.zeros(2, 3)]) == leaf_construction([torch.ones(2, 3)])
    assert leaf_construction([mode.from_tensor(torch.zeros(2, 3).T)]) != leaf_construction([x])


def test_equal_blocks_are_traced_once(monkeypatch: pytest.MonkeyPatch) -> None:
    traced: list[nn.Module] = []
    plain = programs.capture_block

    def counted(block: nn.Module, *args: object) -> object:
        traced.append(block)
        return plain(block, *args)

    monkeypatch.setattr(programs, "capture_block", counted)
    with torch.device("meta"):
        model = FluxTransformer2DModel(
            num_layers=3,
            num_single_layers=6,
            attention_head_dim=16,
            num_attention_heads=2,
            axes_dims_rope=(4, 6, 6),
        )
    blocks, singles = model.transformer_blocks, model.single_transformer_blocks
    singles[4].attn.added = object()
    sdtm_fx.rewrite(model, sdtm_fx.load_recipe("flux.1-dev-windows").override({"sites.*.expect": None}))
    rewriting = the_rewriting(model)
    assert len(rewriting.cache.programs) == 2
    assert len(rewriting.bindings) == 9
    # The streams come to the second of the single blocks as slices of one tensor: other strides than to the first.
    assert traced == [blocks[0], singles[0], singles[1], singles[4]]
