"""``g(unmerge(y))`` becomes ``unmerge(g(y))``: what moves, what must not, and that nothing changes."""

from __future__ import annotations

import operator
from collections.abc import Callable
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn
from torch.nn import functional as F

from sdtm_fx.passes.sink_unmerge import SINK_UNMERGE
from sdtm_fx.rewriting.runner import run_passes
from sdtm_fx.runtime import ops
from tests.passes.blocks import DualBlock, GatedBlock, ParallelBlock, TailBlock, condition, image, text
from tests.passes.working import (
    ATTN,
    DUAL,
    FF,
    PARALLEL,
    REFRESH,
    REUSE,
    Calls,
    Worked,
    close,
    recipe,
    up_to,
    work_on,
)

Tail = Callable[[TailBlock, torch.Tensor, torch.Tensor, torch.Tensor], torch.Tensor]
X, T, C = image(), text(), condition()
SITES = up_to("sink_unmerge")
RULES = recipe([FF])

PER_TOKEN: dict[str, Tail] = {
    "gate": lambda b, y, x, t: t[:, None] * y,
    "gate behind": lambda b, y, x, t: y * t[:, None],
    "scale and shift": lambda b, y, x, t: y * (1 + t[:, None]) - t[:, None],
    "parameter": lambda b, y, x, t: y * b.scale,
    "number": lambda b, y, x, t: (2 * y + 1) / 3 - 0.5,
    "negation": lambda b, y, x, t: -y,
    "methods": lambda b, y, x, t: y.mul(0.5).add(1.0).sub(t[:, None]).clamp(-1, 1).contiguous(),
    "functions": lambda b, y, x, t: torch.clamp(torch.mul(F.gelu(y), t[:, None]), -2, 2),
    "cast": lambda b, y, x, t: y.to(torch.float64).to(torch.float32),
    "activation": lambda b, y, x, t: b.act(y),
    "linear": lambda b, y, x, t: b.linear(y),
    "all": lambda b, y, x, t: t[:, None] * b.linear(b.act(y * b.scale)),
    "itself": lambda b, y, x, t: y * y,
}


def worked_on(tail: Tail, **kwargs: Any) -> Worked:
    return work_on(TailBlock(tail), (X, C), RULES, passes=SITES, **kwargs)


def residual(worked: Worked) -> tuple[Any, ...]:
    """What the last addition, the residual one, takes in."""
    last = [n for n in worked.work.graph.nodes if n.op != "output"][-1]
    assert last.target is operator.add
    return tuple(n.target for n in last.all_input_nodes)


@pytest.mark.parametrize("tail", PER_TOKEN.values(), ids=PER_TOKEN)
def test_work_on_each_token_alone_moves_in_front(tail: Tail) -> None:
    worked = worked_on(tail)
    assert worked.applied["sink_unmerge"] >= 1
    assert worked.count(ops.unmerge_tokens) == 1
    assert residual(worked) == ("hidden_states", ops.unmerge_tokens)


@pytest.mark.parametrize("remove", [0, 3, 12, 18])
@pytest.mark.parametrize("tail", PER_TOKEN.values(), ids=PER_TOKEN)
def test_moving_changes_no_value(tail: Tail, remove: int) -> None:
    block = TailBlock(tail)
    sunk = work_on(block, (X, C), RULES, passes=SITES)
    still = work_on(block, (X, C), RULES, passes=SITES[:-1])
    # Equal, except that a linear layer now multiplies fewer rows, and that where a value stands decides whether
    # an activation is computed by vector instructions or by the scalar tail of a loop.
    tolerance = 1e-5 if sunk.count("linear") else 1e-6 if sunk.count("act") else 0.0
    one, other = (w.run(X, C, call=Calls(RULES).make(remove=remove)) for w in (sunk, still))
    close(one, other, tolerance)


STOPS: dict[str, Tail] = {
    "gate per token": lambda b, y, x, t: y * x,
    "gate per token, flat": lambda b, y, x, t: y * x[0, :, :1],
    "second user": lambda b, y, x, t: y * y.sigmoid(),
    "sum over tokens": lambda b, y, x, t: y - y.mean(1, keepdim=True),
    "norm over tokens": lambda b, y, x, t: y.softmax(dim=1),
    "norm": lambda b, y, x, t: b.norm(y),
    "cat along tokens": lambda b, y, x, t: torch.cat([y, x], dim=1)[:, : x.shape[1]],
    "cat with others": lambda b, y, x, t: b.wide(torch.cat([y, x], dim=-1)),
    "roll": lambda b, y, x, t: y.roll(1, 1),
    "unknown": lambda b, y, x, t: torch.sort(y, dim=1).values,
}


@pytest.mark.parametrize("tail", STOPS.values(), ids=STOPS)
def test_near_misses_stay_behind(tail: Tail) -> None:
    worked = worked_on(tail)
    assert worked.applied["sink_unmerge"] == 0
    (unmerge,) = worked.work.calls(ops.unmerge_tokens)
    assert unmerge.args[1].target == "ff"
    block, call = worked.block, Calls(RULES).make(remove=0)
    with torch.no_grad():
        assert torch.equal(worked.run(X, C, call=call), block(X, C))


def test_it_stops_in_front_of_the_first_that_must_not_move() -> None:
    worked = worked_on(lambda b, y, x, t: b.linear(x * (t[:, None] * y)))
    assert worked.applied["sink_unmerge"] == 1
    (unmerge,) = worked.work.calls(ops.unmerge_tokens)
    assert [n.target for n in unmerge.users] == [operator.mul]
    assert worked.inputs_of("linear") == (operator.mul,)


def test_a_residual_addition_never_moves() -> None:
    worked = worked_on(lambda b, y, x, t: y)
    assert worked.applied["sink_unmerge"] == 0
    assert residual(worked) == ("hidden_states", ops.unmerge_tokens)


class MyGelu(nn.Module):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return F.gelu(x) - x.mean(1, keepdim=True)


class MyLinear(nn.Linear):
    """A subclass may look at other tokens."""


@pytest.mark.parametrize(
    "module", [MyGelu(), MyLinear(8, 8), nn.Softmax(dim=1), nn.LayerNorm(8)], ids=lambda m: type(m).__name__
)
def test_modules_that_are_not_known_stay_behind(module: nn.Module) -> None:
    block = TailBlock(lambda b, y, x, t: b.act(y))
    block.act = module
    assert work_on(block, (X, C), RULES, passes=SITES).applied["sink_unmerge"] == 0


def test_a_hooked_linear_may_move_since_it_is_still_called() -> None:
    block = TailBlock(lambda b, y, x, t: b.linear(y))
    seen: list[int] = []
    block.linear.register_forward_hook(lambda m, a, o: seen.append(o.shape[1]))
    worked = work_on(block, (X, C), RULES, passes=SITES)
    seen.clear()
    worked.run(X, C, call=Calls(RULES).make(remove=12))
    assert seen == [12]


def test_both_unmerges_of_one_plan_join_along_channels() -> None:
    worked = work_on(ParallelBlock(), (X, T, C), recipe(PARALLEL), passes=SITES)
    # Activation, concatenation, projection, gate: the last unmerge stands in front of the residual addition.
    assert worked.applied["sink_unmerge"] == 4
    (unmerge,) = worked.work.calls(ops.unmerge_tokens)
    assert unmerge.meta["site"] == "attn+mlp"
    assert [n.target for n in unmerge.users] == [operator.add]
    (cat,) = [n for n in worked.work.calls(torch.cat) if n.kwargs.get("dim") == 2]
    assert {p.target for p in cat.args[0]} == {"attn", "act_mlp"}


def test_one_merged_branch_does_not_join_a_dense_one() -> None:
    worked = work_on(ParallelBlock(), (X, T, C), recipe(PARALLEL, merged=["mlp"]), passes=SITES)
    assert worked.applied["sink_unmerge"] == 1  # the activation only
    assert worked.inputs_of("act_mlp") == ("proj_mlp",)


@pytest.mark.parametrize(
    ("block", "args", "sites", "moves"),
    [
        (GatedBlock(), (X, C), [ATTN, FF], 2),
        (DualBlock(), (X, T, C), DUAL, 3),
        (ParallelBlock(), (X, T, C), PARALLEL, 4),
    ],
    ids=["gated", "dual", "parallel"],
)
def test_gates_move_in_every_family(
    block: nn.Module, args: tuple[Any, ...], sites: list[Any], moves: int
) -> None:
    rules = recipe(sites)
    sunk, still = work_on(block, args, rules, passes=SITES), work_on(block, args, rules, passes=SITES[:-1])
    assert sunk.applied["sink_unmerge"] == moves
    one, other = (w.run(*args, call=Calls(rules).make(remove=12)) for w in (sunk, still))
    close(one, other)
    for unmerge in sunk.work.calls(ops.unmerge_tokens):
        assert [n.target for n in unmerge.users] == [operator.add]


def test_marks_of_dense_steps_move_to_the_same_places() -> None:
    rules = recipe(PARALLEL, reuse=REUSE)
    merged = work_on(ParallelBlock(), (X, T, C), rules, passes=SITES)
    refresh = work_on(ParallelBlock(), (X, T, C), rules, variant=REFRESH, passes=SITES)
    places = [[n.meta["site"] for n in w.work.calls(ops.unmerge_tokens)] for w in (merged, refresh)]
    assert places == [["attn+mlp"], ["attn+mlp"]]


def test_a_recipe_may_switch_it_off() -> None:
    worked = work_on(GatedBlock(), (X, C), recipe([FF], passes={"sink_unmerge": False}), passes=SITES)
    assert worked.applied["sink_unmerge"] == 0


def test_a_second_run_finds_nothing() -> None:
    worked = work_on(ParallelBlock(), (X, T, C), recipe(PARALLEL), passes=SITES)
    before = str(worked.work.graph)
    assert run_passes(worked.work, (SINK_UNMERGE,)) == {"sink_unmerge": 0}
    assert str(worked.work.graph) == before


STEPS: dict[str, Tail] = PER_TOKEN | {
    k: STOPS[k] for k in ("gate per token", "second user", "norm", "sum over tokens")
}


@settings(max_examples=15, deadline=None)
@given(st.lists(st.sampled_from(sorted(STEPS)), max_size=4), st.sampled_from([3, 12, 18]), st.integers(0, 9))
def test_any_chain_computes_the_same(names: list[str], remove: int, seed: int) -> None:
    def tail(b: TailBlock, y: torch.Tensor, x: torch.Tensor, t: torch.Tensor) -> torch.Tensor:
        for name in names:
            y = STEPS[name](b, y, x, t)
        return y

    torch.manual_seed(seed)
    block, x = TailBlock(tail), image(seed=seed)
    sunk, still = (
        work_on(block, (x, C), RULES, passes=SITES),
        work_on(block, (x, C), RULES, passes=SITES[:-1]),
    )
    one, other = (w.run(x, C, call=Calls(RULES).make(remove=remove)) for w in (sunk, still))
    close(one, other, 1e-4)  # chains of products amplify rounding


class Adapter(torch.nn.Module):
    """An adapter around a linear layer, in the form of PEFT's LoRA layers."""

    def __init__(self, base: torch.nn.Module) -> None:
        super().__init__()
        self.base_layer = base

    def get_base_layer(self) -> torch.nn.Module:
        return self.base_layer

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.base_layer(x) * 1.5


def test_an_adapter_around_a_linear_layer_moves_too() -> None:
    block = TailBlock(PER_TOKEN["linear"])
    block.linear = Adapter(block.linear)
    worked = work_on(block, (X, C), RULES, passes=SITES)
    assert worked.applied["sink_unmerge"] == 1
    assert residual(worked) == ("hidden_states", ops.unmerge_tokens)
