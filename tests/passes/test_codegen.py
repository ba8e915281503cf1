"""Graphs become functions that any block of the structure can run."""

from __future__ import annotations

import operator

import torch

from sdtm_fx.rewriting.codegen import copy_graph, graph_function
from tests.capture.tracing import trace
from tests.passes.blocks import GatedBlock, condition, image
from tests.passes.working import ATTN, FF, Calls, recipe, work_on

X, C = image(), condition()


def test_a_copy_has_the_same_text_and_metadata_but_other_nodes() -> None:
    graph = trace(GatedBlock(), X, C).graph
    copy = copy_graph(graph)
    assert str(copy) == str(graph)
    assert [n.meta.get("val") is m.meta.get("val") for n, m in zip(copy.nodes, graph.nodes, strict=True)]
    assert not set(copy.nodes) & set(graph.nodes)
    copy.lint()


def test_changing_a_copy_leaves_the_original() -> None:
    graph = trace(GatedBlock(), X, C).graph
    before, copy = str(graph), copy_graph(graph)
    for node in list(copy.nodes):
        if node.target is operator.mul:
            node.target = operator.add
    assert str(copy) != before
    assert str(graph) == before


def test_a_function_is_named_for_tracebacks() -> None:
    function = graph_function(trace(GatedBlock(), X, C).graph, GatedBlock(), "GatedBlock_structure")
    assert function.__name__ == function.__qualname__ == "GatedBlock_structure"
    assert function.__module__ == "sdtm_fx.generated"


def test_functions_do_not_share_code_objects() -> None:
    graph = trace(GatedBlock(), X, C).graph
    one, other = (graph_function(graph, GatedBlock(), name) for name in ("one", "other"))
    assert one.__code__ is not other.__code__  # torch.compile keeps its cache by code object


def test_a_function_uses_the_modules_of_the_block_it_is_given() -> None:
    first, second = GatedBlock(), GatedBlock()
    function = graph_function(trace(first, X, C).graph, first, "f")
    with torch.no_grad():
        assert torch.equal(function(second, X, C), second(X, C))
        second.ff = torch.nn.Identity()  # replaced later, as by a LoRA
        assert torch.equal(function(second, X, C), second(X, C))


def test_a_function_holds_no_copy_of_its_owner() -> None:
    block = GatedBlock()
    function = graph_function(trace(block, X, C).graph, block, "f")
    held = [v for v in function.__globals__.values() if isinstance(v, torch.nn.Module | torch.Tensor)]
    assert held == []
    assert function.__closure__ is None


def test_generated_code_reads_like_python() -> None:
    worked = work_on(GatedBlock(), (X, C), recipe([ATTN, FF]))
    code = worked.work.graph.python_code("self").src
    assert "def forward(self, ctx, hidden_states" in code
    assert "plan_tokens(ctx" in code
    assert "self.attn(" in code
    compile(code, "generated", "exec")


def test_one_function_serves_every_ratio() -> None:
    rules = recipe([ATTN, FF])
    worked = work_on(GatedBlock(), (X, C), rules)
    outputs = [worked.run(X, C, call=Calls(rules).make(remove=n)) for n in (0, 3, 18)]
    assert all(o.shape == X.shape for o in outputs)
    assert not torch.equal(outputs[1], outputs[2])
