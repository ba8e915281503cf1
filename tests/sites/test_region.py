"""Single way out, and a residual addition at its end: asked of small graphs."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import fx, nn

from sdtm_fx.sites.region import as_digraph, descends_from, is_addition, path_to_residual
from tests.capture.tracing import trace

Forward = Callable[[nn.Module, torch.Tensor, torch.Tensor], object]


def graph_of(body: Forward) -> fx.Graph:
    class Block(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.f = nn.Linear(4, 4)

        def forward(self, x: torch.Tensor, gate: torch.Tensor) -> object:
            return body(self.f, x, gate)

    return trace(Block(), torch.ones(2, 3, 4), torch.ones(2, 1, 4)).graph


def path(body: Forward) -> list[str] | None:
    graph = graph_of(body)
    site = next(n for n in graph.nodes if n.op == "call_module")
    entry = next(iter(graph.nodes))
    found = path_to_residual(graph, entry, site)
    return None if found is None else [getattr(n.target, "__name__", str(n.target)) for n in found]


@pytest.mark.parametrize(
    ("body", "expected"),
    [
        (lambda f, x, g: x + f(x), ["f", "add"]),
        (lambda f, x, g: f(x) + x, ["f", "add"]),
        (lambda f, x, g: torch.add(x, f(x)), ["f", "add"]),
        (lambda f, x, g: f(x).add(x), ["f", "add"]),
        (lambda f, x, g: f(x).clone().add_(x), ["f", "clone", "add_"]),
        (lambda f, x, g: x + g * f(x), ["f", "mul", "add"]),
        (lambda f, x, g: x + g * (f(x) + 1), ["f", "add", "mul", "add"]),  # a constant is no stream
        (lambda f, x, g: x + (f(x) + g), ["f", "add", "add"]),  # nor is what has no tokens
        (lambda f, x, g: (x + f(x), x * 2), ["f", "add"]),
        (lambda f, x, g: (lambda y: x + y * y.sigmoid())(f(x)), ["f", "mul", "add"]),  # parts and meets again
    ],
)  # fmt: skip
def test_ways_that_end_in_a_residual(body: Forward, expected: list[str]) -> None:
    assert path(body) == expected


@pytest.mark.parametrize(
    "body",
    [
        lambda f, x, g: f(x),
        lambda f, x, g: x * f(x),
        lambda f, x, g: (lambda y: y + y * 2)(f(x)),  # adds the site to itself
        lambda f, x, g: (lambda y: (x + y, y))(f(x)),  # a second way out
        lambda f, x, g: torch.cat([x, f(x)], dim=1),
        lambda f, x, g: f(x) + g,  # no stream on the other side
        lambda f, x, g: f(x).mean(1) + x.mean(1),  # tokens are gone
    ],
)
def test_ways_that_do_not(body: Forward) -> None:
    assert path(body) is None


def test_additions() -> None:
    graph = graph_of(lambda f, x, g: (x + 1) * 2 - torch.add(x, g))
    assert [is_addition(n) for n in graph.nodes if n.op == "call_function"] == [True, False, True, False]


def test_descent() -> None:
    graph = graph_of(lambda f, x, g: (f(x) * 2, g + 1))
    x, gate, site, double, other = list(graph.nodes)[:5]
    assert descends_from(double, x)
    assert descends_from(double, double)
    assert not descends_from(double, gate)
    assert not descends_from(x, double)
    assert not descends_from(other, site)


def test_a_digraph_has_an_edge_per_use() -> None:
    graph = graph_of(lambda f, x, g: x * x + f(x))
    digraph = as_digraph(graph)
    assert set(digraph.nodes) == set(graph.nodes)
    assert {(a, b) for b in graph.nodes for a in b.all_input_nodes} == set(digraph.edges)


def test_a_sequence_may_be_cut_behind_the_site() -> None:
    """Text and image in one sequence, each with a residual of its own (CogVideoX)."""

    def cut(f: nn.Module, x: torch.Tensor, g: torch.Tensor) -> object:
        y = f(x)
        return x[:, :1] + g * y[:, :1], x[:, 1:] + y[:, 1:]

    def lost(f: nn.Module, x: torch.Tensor, g: torch.Tensor) -> object:
        y = f(x)
        return x[:, :1] + y[:, :1], y[:, 1:] * g

    def channels(f: nn.Module, x: torch.Tensor, g: torch.Tensor) -> object:
        y = f(x)
        return x[..., :1] + y[..., :1], x[..., 1:] + y[..., 1:]

    assert path(cut) == ["f"]
    assert path(lost) is None, "one part has no residual"
    assert path(channels) is None, "channels are no tokens"
