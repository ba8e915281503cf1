"""Real transformers: graphs of their blocks are exact at sizes that were not traced."""

from __future__ import annotations

import functools
from typing import Any

import pytest
import torch
from torch import nn

from sdtm_fx.capture.arguments import Key, Signature, flatten
from sdtm_fx.capture.blocks import OuterCapture, capture_block, capture_outer
from sdtm_fx.capture.tracer import Capture
from sdtm_fx.rewriting.codegen import graph_function
from tests.pipelines import tiny_flux_transformer, tiny_sd3_transformer
from tests.zoo import ZOO, build, flux_inputs, sd3_inputs, sd35_medium

TRACED = (2, (4, 6), 5)
OTHERS = [(1, (4, 6), 5), (3, (6, 4), 9), (2, (8, 8), 5)]


def capture_model(name: str, model: nn.Module) -> tuple[OuterCapture, dict[str, Capture]]:
    family = ZOO[name]
    outer = capture_outer(model, family.block_paths(model), lambda: family.inputs(*TRACED))
    return outer, {
        c.path: capture_block(model.get_submodule(c.path), c.key, c.leaves, mode=outer.mode)
        for c in outer.calls
    }


@functools.cache
def captured(name: str) -> tuple[nn.Module, OuterCapture, dict[str, Capture]]:
    model = build(name)
    return (model, *capture_model(name, model))


def run_graphs(model: nn.Module, captures: dict[str, Capture], inputs: dict[str, Any]) -> torch.Tensor:
    """Call the model with the captured graph in place of every block's forward."""

    def install(block: nn.Module, capture: Capture) -> None:
        signature, function = (
            Signature.of(type(block).forward),
            graph_function(capture.graph, block, "captured"),
        )

        def forward(*args: Any, **kwargs: Any) -> Any:
            key, leaves = flatten(signature.bind(args, kwargs))
            assert key == capture.key
            return function(block, *leaves)

        block.__dict__["forward"] = forward

    blocks = {path: model.get_submodule(path) for path in captures}
    for path, block in blocks.items():
        install(block, captures[path])
    try:
        with torch.no_grad():
            return model(**inputs)[0]
    finally:
        for block in blocks.values():
            del block.__dict__["forward"]


@pytest.mark.parametrize("size", [TRACED, *OTHERS], ids=str)
@pytest.mark.parametrize("name", ZOO)
def test_block_graphs_are_exact_at_any_size(name: str, size: tuple[int, tuple[int, int], int]) -> None:
    model, _, captures = captured(name)
    inputs = ZOO[name].inputs(*size)
    with torch.no_grad():
        expected = model(**inputs)[0]
    assert torch.equal(run_graphs(model, captures, inputs), expected)


@pytest.mark.parametrize("name", ZOO)
def test_blocks_are_called_in_order_and_need_no_guards(name: str) -> None:
    model, outer, captures = captured(name)
    assert [call.path for call in outer.calls] == ZOO[name].block_paths(model)
    assert {c.guards for c in captures.values()} == {0}
    assert all(call.node.op == "call_module" for call in outer.calls)


@pytest.mark.parametrize("name", ZOO)
def test_graphs_call_the_blocks_own_modules(name: str) -> None:
    model, _, captures = captured(name)
    for path, capture in captures.items():
        block = model.get_submodule(path)
        for node in capture.graph.nodes:
            if node.op == "call_module":
                assert isinstance(block.get_submodule(node.target), nn.Module)
        capture.graph.lint()


def structures(name: str, model: nn.Module) -> int:
    return len({str(c.graph) for c in capture_model(name, model)[1].values()})


@pytest.mark.parametrize("layers", [2, 4])
def test_sd3_has_two_structures_at_any_depth(layers: int) -> None:
    assert structures("sd3", tiny_sd3_transformer(layers=layers)) == 2  # the last block drops the text


@pytest.mark.parametrize("layers", [3, 5])
def test_sd35_medium_has_three_structures(layers: int) -> None:
    assert structures("sd3.5", sd35_medium(layers)) == 3


@pytest.mark.parametrize(("layers", "single"), [(1, 1), (3, 2)])
def test_flux_has_two_structures(layers: int, single: int) -> None:
    assert structures("flux", tiny_flux_transformer(layers=layers, single_layers=single)) == 2


def test_half_precision_is_another_graph() -> None:
    model = tiny_flux_transformer().half()
    inputs = {k: v.half() if torch.is_tensor(v) else v for k, v in flux_inputs(*TRACED).items()}
    outer = capture_outer(model, ["single_transformer_blocks.0"], lambda: inputs)
    (call,) = outer.calls
    graph = capture_block(model.single_transformer_blocks[0], call.key, call.leaves, mode=outer.mode).graph
    clips = [n for n in graph.nodes if n.op == "call_method" and n.target == "clip"]
    assert len(clips) == 1
    single = captured("flux")[2]["single_transformer_blocks.0"].graph
    assert not [n for n in single.nodes if n.op == "call_method" and n.target == "clip"]


def test_capture_computes_nothing_and_keeps_weights() -> None:
    model = tiny_sd3_transformer()
    before = {k: (v.data_ptr(), v._version) for k, v in model.state_dict(keep_vars=True).items()}
    outer = capture_outer(model, ["transformer_blocks.0"], lambda: sd3_inputs(*TRACED))
    assert all(isinstance(leaf, torch._subclasses.FakeTensor) for leaf in outer.calls[0].leaves)
    assert {k: (v.data_ptr(), v._version) for k, v in model.state_dict(keep_vars=True).items()} == before
    assert not any("forward" in m.__dict__ for m in model.modules())


def test_real_leaves_give_the_same_graph_as_fake_ones() -> None:
    model, outer, captures = captured("sd3")
    call = outer.calls[0]
    block = model.get_submodule(call.path)
    seen: list[tuple[Key, list[Any]]] = []
    handle = block.register_forward_pre_hook(
        lambda m, a, k: seen.append(flatten(Signature.of(type(m).forward).bind(a, k))), with_kwargs=True
    )
    with torch.no_grad():
        model(**sd3_inputs(*TRACED))
    handle.remove()
    key, leaves = seen[0]
    assert key == call.key
    assert str(capture_block(block, key, leaves).graph) == str(captures[call.path].graph)
