"""Plans in graphs: one graph, the same tokens, and nothing that a static graph must not hold."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor
from torch._dynamo.backends.common import aot_autograd
from torch.fx import GraphModule
from torch.fx.experimental.proxy_tensor import make_fx

from sdtm_fx.attention_score import AttentionHeads, received_attention
from sdtm_fx.methods import (
    FIDM,
    IDM,
    SSM,
    AtEdm,
    CAToMe,
    Importance,
    LocalMatch,
    Method,
    Random,
    SiTo,
    ToDo,
    ToFu,
    TokenCache,
    TokenView,
    ToMA,
    ToMe,
    Uniform,
)

GRID, REMOVE = (7, 9), 24
METHODS: list[Method] = [
    SSM(),
    SSM(select="random"),
    FIDM(),
    FIDM(target="youngest"),
    Random(),
    Uniform(),
    ToDo(),
    ToMe(),
    ToFu(),
    ToFu(reduce="prune"),
    CAToMe(),
    SiTo(),
    Importance(),
    Importance(metric="grid"),
    LocalMatch(),
    IDM(),
    IDM(window=(2, 2), radius=1, rank="both"),
    ToMA(region="global", tile=(2, 2)),
    ToMA(region="tile", tile=(2, 2), unmerge="pseudo_inverse", temperature=0.1),
    ToMA(region="stripe", stripes=3),
    AtEdm(iterations=2),
    AtEdm(iterations=2, probe_queries=8),
    AtEdm(iterations=2, rank="entropy"),
    AtEdm(iterations=1, rank="hard_clip", similarity="cosine"),
    TokenCache(),
    TokenCache(rank="random"),
]
FORBIDDEN = (
    "nonzero",
    "_local_scalar_dense",
    "masked_select",
    "rand",
    "scatter_add",
    "scatter_reduce",
    "index_add",
)

Outputs = tuple[Tensor, Tensor, Tensor]


def site(method: Method) -> Callable[[Tensor, Tensor, Tensor, Tensor], Outputs]:
    def run(x: Tensor, ages: Tensor, attention: Tensor, salt: Tensor) -> Outputs:
        queries = x.unflatten(2, (2, 4)).transpose(1, 2)
        heads = AttentionHeads(queries, queries.flip(2), queries[:, :, :3])
        plan = method.plan(TokenView(x, GRID, ages, attention, salt, attention.square(), heads), REMOVE)
        behind = plan.placed(2)
        long = torch.cat([x[:, :2], x], dim=1)
        return plan.unmerge(plan.merge(x)), behind.unmerge(behind.merge(long)), plan.next_ages(ages)

    return run


def example() -> tuple[Tensor, Tensor, Tensor, Tensor]:
    draw = torch.Generator().manual_seed(0)
    ages = torch.randint(0, 4, (2, 63), generator=draw, dtype=torch.int32)
    return (
        torch.randn(2, 63, 8, generator=draw),
        ages,
        torch.rand(2, 63, generator=draw),
        torch.tensor(5),
    )


def check_graph(graph: GraphModule) -> None:
    for node in graph.graph.nodes:
        name = str(node.target)
        assert not any(word in name for word in FORBIDDEN), name
        if "sort" in name and node.args[0].meta["val"].is_floating_point():
            assert node.kwargs.get("stable") is True, f"{name}: equal scores must keep their order"
        if "aten.index." in name or "index_put" in name:
            assert all(i is None or i.meta["val"].dtype != torch.bool for i in node.args[1]), name


@pytest.mark.parametrize("method", METHODS, ids=repr)
def test_a_site_is_one_static_graph(method: Method) -> None:
    graphs: list[GraphModule] = []

    def keep(graph: GraphModule, _: object) -> GraphModule:
        graphs.append(graph)
        return graph

    torch._dynamo.reset()
    compiled = torch.compile(site(method), fullgraph=True, backend=aot_autograd(fw_compiler=keep))
    found, expected = compiled(*example()), site(method)(*example())
    assert len(graphs) == 1
    check_graph(graphs[0])
    torch.testing.assert_close(found, expected)
    assert torch.equal(found[2], expected[2])


@pytest.mark.parametrize("method", METHODS, ids=repr)
def test_eager_work_is_static_too(method: Method) -> None:
    check_graph(make_fx(site(method), tracing_mode="fake")(*example()))


def test_a_plan_can_leave_one_graph_and_enter_another() -> None:
    torch._dynamo.reset()
    x, ages, attention, salt = example()
    method = SSM()
    make = torch.compile(
        lambda x: method.plan(TokenView(x, GRID, ages, attention, salt), REMOVE),
        fullgraph=True,
        backend="eager",
    )
    use = torch.compile(lambda plan, x: plan.merge(x), fullgraph=True, backend="eager")
    plan = method.plan(TokenView(x, GRID, ages, attention, salt), REMOVE)
    torch.testing.assert_close(use(make(x), x), plan.merge(x))


def test_another_salt_needs_no_new_graph() -> None:
    torch._dynamo.reset()
    counter = torch._dynamo.testing.CompileCounter()
    compiled = torch.compile(site(ToMe()), fullgraph=True, backend=counter)
    x, ages, attention, _ = example()
    first, second = (compiled(x, ages, attention, torch.tensor(salt))[0] for salt in (1, 2))
    assert counter.frame_count == 1
    assert not torch.equal(first, second)


def test_received_attention_is_static() -> None:
    query, key = torch.randn(1, 2, 40, 8), torch.randn(1, 2, 40, 8)
    graph = make_fx(lambda q, k: received_attention(q, k, image=(4, 36), probes=8), tracing_mode="fake")(
        query, key
    )
    check_graph(graph)


@pytest.mark.slow
@pytest.mark.compile
@pytest.mark.parametrize("method", METHODS, ids=repr)
def test_inductor_agrees(method: Method) -> None:
    torch._dynamo.reset()
    compiled = torch.compile(site(method), fullgraph=True)
    # A cold softmax makes a thousandfold of what rounding leaves in a cosine.
    tolerance = {"rtol": 1e-3, "atol": 1e-3} if isinstance(method, ToMA) else {}
    torch.testing.assert_close(compiled(*example()), site(method)(*example()), **tolerance)
