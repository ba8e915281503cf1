"""Plans that mix slots: what may move in front of an unmerge that is no copy, and what must not."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from torch import nn
from torch.nn import functional as F

from sdtm_fx.recipe.schema import Recipe
from sdtm_fx.rewriting.programs import ProgramCache
from sdtm_fx.rewriting.serving import dense_variant
from sdtm_fx.runtime import ops, rotary_ops
from sdtm_fx.runtime.call import Variant
from tests.passes.blocks import (
    DualBlock,
    GatedBlock,
    ParallelBlock,
    RotaryBlock,
    TailBlock,
    condition,
    image,
    tables,
    text,
)
from tests.passes.test_real_blocks import toy_program
from tests.passes.test_sink_unmerge import PER_TOKEN, STOPS, Adapter, Tail, residual
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

X, T, C = image(), text(), condition()
SITES = up_to("sink_unmerge")
AVERAGE = {"name": "toma", "region": "tile", "tile": [2, 3], "temperature": 0.2}
LINEAR = {**AVERAGE, "unmerge": "pseudo_inverse"}
KINDS = {"average": recipe([FF], method=AVERAGE), "linear": recipe([FF], method=LINEAR)}
BOTH = pytest.mark.parametrize("kind", KINDS)

SCALING: dict[str, Tail] = {
    "gate": lambda b, y, x, t: t[:, None] * y,
    "gate behind": lambda b, y, x, t: y * t[:, None],
    "parameter": lambda b, y, x, t: torch.mul(y, b.scale),
    "number": lambda b, y, x, t: (2 * y).mul(0.5) / 3,
    "over a gate": lambda b, y, x, t: y / (2 + t[:, None].abs()),
    "negation": lambda b, y, x, t: -y,
    "cast": lambda b, y, x, t: y.to(torch.float64).to(torch.float32).contiguous(),
    "twice": lambda b, y, x, t: y + y,
}
WITH_CONSTANTS: dict[str, Tail] = {
    "shift": lambda b, y, x, t: y + t[:, None],
    "shift by a number": lambda b, y, x, t: y.add(1.0).sub(0.5),
    "scale and shift": lambda b, y, x, t: y * (1 + t[:, None]) - t[:, None],
    "from a constant": lambda b, y, x, t: 1.0 - y,
    "linear with bias": lambda b, y, x, t: b.linear(y),
}
NOT_AFFINE: dict[str, Tail] = {
    "activation": lambda b, y, x, t: b.act(y),
    "function": lambda b, y, x, t: F.gelu(y),
    "clamp": lambda b, y, x, t: y.clamp(-1, 1),
    "clip": lambda b, y, x, t: torch.clip(y, -1, 1),
    "square": lambda b, y, x, t: y * y,
    "quotient": lambda b, y, x, t: y / y,
    "over tokens": lambda b, y, x, t: t[:, None] / y,
    "rounded": lambda b, y, x, t: y.to(torch.int32).to(torch.float32),
    "dropout": lambda b, y, x, t: b.drop(y),
}


def block_of(tail: Tail) -> TailBlock:
    block = TailBlock(tail)
    block.drop = nn.Dropout(0.5).eval()
    return block


def sunk(tail: Tail, kind: str, block: nn.Module | None = None) -> tuple[Worked, Worked]:
    """A block with its unmerges moved, and the same with all of them where they were."""
    block = block_of(tail) if block is None else block
    moved, still = (work_on(block, (X, C), KINDS[kind], passes=passes) for passes in (SITES, SITES[:-1]))
    return moved, still


def check_values(moved: Worked, still: Worked, kind: str, remove: int = 12) -> None:
    one, other = (w.run(X, C, call=Calls(KINDS[kind]).make(remove=remove)) for w in (moved, still))
    close(one, other, 1e-3 if kind == "linear" else 1e-5)


@BOTH
@pytest.mark.parametrize("name", SCALING)
def test_scaling_moves(name: str, kind: str) -> None:
    moved, still = sunk(SCALING[name], kind)
    assert residual(moved) == ("hidden_states", ops.unmerge_tokens)
    check_values(moved, still, kind)


@pytest.mark.parametrize("name", WITH_CONSTANTS)
def test_constants_move_only_where_weights_sum_to_one(name: str) -> None:
    moved, still = sunk(WITH_CONSTANTS[name], "average")
    assert residual(moved) == ("hidden_states", ops.unmerge_tokens)
    check_values(moved, still, "average")
    assert residual(sunk(WITH_CONSTANTS[name], "linear")[0]) != ("hidden_states", ops.unmerge_tokens)


@BOTH
@pytest.mark.parametrize("name", NOT_AFFINE)
def test_what_is_not_affine_stays_behind(name: str, kind: str) -> None:
    moved, still = sunk(NOT_AFFINE[name], kind)
    assert moved.applied["sink_unmerge"] == 0
    (unmerge,) = moved.work.calls(ops.unmerge_tokens)
    assert unmerge.args[1].target == "ff"
    check_values(moved, still, kind)


def test_moving_an_activation_would_change_the_result() -> None:
    """The reason for the rule: a mean of activations is no activation of a mean."""
    copies = work_on(block_of(NOT_AFFINE["activation"]), (X, C), recipe([FF]), passes=SITES)
    still = work_on(copies.block, (X, C), KINDS["average"], passes=SITES)
    call = Calls(KINDS["average"]).make(remove=12)
    assert copies.applied["sink_unmerge"] == 1
    assert not torch.allclose(copies.run(X, C, call=call), still.run(X, C, call=call), atol=1e-3)


@BOTH
@pytest.mark.parametrize("name", STOPS)
def test_what_stops_a_copy_stops_a_mixture(name: str, kind: str) -> None:
    moved, still = sunk(STOPS[name], kind)
    assert moved.applied["sink_unmerge"] == 0
    check_values(moved, still, kind)


@BOTH
def test_a_linear_layer_without_bias_moves(kind: str) -> None:
    block = block_of(lambda b, y, x, t: b.linear(y))
    block.linear = nn.Linear(8, 8, bias=False)
    moved, still = sunk(block.__dict__["tail"], kind, block)
    assert residual(moved) == ("hidden_states", ops.unmerge_tokens)
    check_values(moved, still, kind)


class MyLinear(nn.Linear):
    """A subclass may do more than multiply."""


def hooked() -> nn.Module:
    layer = nn.Linear(8, 8, bias=False)
    layer.register_forward_hook(lambda m, args, out: out.relu())
    return layer


@pytest.mark.parametrize(
    "layer",
    [MyLinear(8, 8, bias=False), Adapter(nn.Linear(8, 8)), hooked()],
    ids=["subclass", "adapter", "hook"],
)
def test_a_layer_that_may_do_more_stays_behind(layer: nn.Module) -> None:
    block = block_of(lambda b, y, x, t: b.linear(y))
    block.linear = layer
    moved, still = sunk(block.__dict__["tail"], "average", block)
    assert moved.applied["sink_unmerge"] == 0
    check_values(moved, still, "average")


CHAINS: dict[str, Tail] = {**PER_TOKEN, **SCALING, **WITH_CONSTANTS, **NOT_AFFINE}


@settings(max_examples=15, deadline=None)
@given(st.lists(st.sampled_from(sorted(CHAINS)), max_size=4), st.integers(1, 20), st.sampled_from([*KINDS]))
def test_any_chain_computes_the_same(names: list[str], remove: int, kind: str) -> None:
    def tail(b: TailBlock, y: torch.Tensor, x: torch.Tensor, t: torch.Tensor) -> torch.Tensor:
        for name in names:
            y = CHAINS[name](b, y, x, t)
        return y

    assume(
        not {"over tokens", "quotient"} & {*names}
    )  # dividing by a token near zero has no accuracy to compare
    torch.manual_seed(0)
    moved, still = sunk(tail, kind)
    one, other = (w.run(X, C, call=Calls(KINDS[kind]).make(remove=remove)) for w in (moved, still))
    scale = float(other.abs().max()) + 1
    close(one / scale, other / scale, 1e-3)


# -- whole blocks ---------------------------------------------------------------------------------------


def rules(sites: Any, merged: Any = None, **more: Any) -> Recipe:
    return recipe(sites, merged=merged, method={**AVERAGE}, **more)


ROTARY = ATTN | {"prefix": "encoder_hidden_states", "rotary": "rotary"}
BLOCKS: dict[str, tuple[Callable[[], nn.Module], tuple[Any, ...], Recipe]] = {
    "gated": (GatedBlock, (X, C), rules([ATTN, FF])),
    "dual": (DualBlock, (X, T, C), rules(DUAL)),
    "parallel": (ParallelBlock, (X, T, C), rules(PARALLEL)),
    "mlp alone": (ParallelBlock, (X, T, C), rules(PARALLEL, merged=["mlp"])),
    "rotary": (RotaryBlock, (X, T, C, tables()), rules([ROTARY], plan={"share": ["batch"]})),
}


@pytest.mark.parametrize("name", BLOCKS)
def test_a_plan_that_removes_nothing_is_the_dense_block(name: str) -> None:
    make, args, rule = BLOCKS[name]
    worked = work_on(make(), args, rule)
    with torch.no_grad():
        close(worked.run(*args, call=Calls(rule).make(remove=0)), worked.block(*args))


@pytest.mark.parametrize("name", BLOCKS)
def test_merging_computes_what_the_passes_say(name: str) -> None:
    make, args, rule = BLOCKS[name]
    block = make()
    whole = work_on(block, args, rule)
    names = ("sink_unmerge", "split_projection")
    still = work_on(block, args, rule.override({f"passes.{n}": False for n in names}))
    one, other = (w.run(*args, call=Calls(rule).make(remove=12)) for w in (whole, still))
    close(one, other, 1e-4)
    with torch.no_grad():
        dense = block(*args)
    assert not torch.allclose(*(t[-1] if isinstance(t, tuple) else t for t in (one, dense)), atol=1e-4)


def test_an_activation_between_keeps_a_projection_whole() -> None:
    worked = work_on(ParallelBlock(), (X, T, C), rules(PARALLEL, merged=["mlp"]))
    assert worked.applied["split_projection"] == 0
    assert worked.count("proj_out") == 1
    (unmerge,) = worked.work.calls(ops.unmerge_tokens)
    assert unmerge.args[1].target == "proj_mlp"


class Straight(ParallelBlock):
    """No activation between the merged layer and the projection."""

    def __init__(self) -> None:
        super().__init__()
        self.act_mlp = nn.Identity()


@pytest.mark.parametrize("method", [AVERAGE, LINEAR], ids=["average", "linear"])
def test_a_projection_is_split_whatever_unmerging_mixes(method: dict[str, Any]) -> None:
    rule = recipe(PARALLEL, merged=["mlp"], method=method)
    block = Straight()
    if method is LINEAR:
        block.proj_mlp = nn.Linear(8, 16, bias=False)
    cut = work_on(block, (X, T, C), rule)
    assert cut.applied["split_projection"] == 1
    whole = work_on(
        block, (X, T, C), rule.override({"passes.split_projection": False, "passes.sink_unmerge": False})
    )
    one, other = (w.run(X, T, C, call=Calls(rule).make(remove=12)) for w in (cut, whole))
    close(one, other, 1e-3)


def test_sites_of_a_block_share_the_plan() -> None:
    worked = work_on(GatedBlock(), (X, C), rules([ATTN, FF]))
    assert worked.applied["share_plans"] == 1
    planned: dict[int, object] = {}
    worked.run(X, C, call=Calls(rules([ATTN, FF])).make(remove=12), planned=planned)
    assert list(planned) == [0]


def test_rotary_tables_follow_the_destinations() -> None:
    make, args, rule = BLOCKS["rotary"]
    worked = work_on(make(), args, rule)
    planned: dict[int, Any] = {}
    worked.run(*args, call=Calls(rule).make(remove=12), planned=planned)
    table = tables()[0]
    gathered = rotary_ops.gather_rotary(planned[0], table)
    assert torch.equal(gathered[:3], table[:3])
    assert torch.equal(gathered[3:], table[3 + planned[0].positions[0]])


# -- features -------------------------------------------------------------------------------------------


def test_features_are_stored_and_blended_at_one_place_and_named_after_it() -> None:
    rule = rules(PARALLEL, merged=["mlp"], reuse=REUSE)
    merged, refresh = (
        work_on(ParallelBlock(), (X, T, C), rule, variant=v) for v in (Variant(stage=0), REFRESH)
    )
    (blend,), (store,) = merged.work.calls(ops.blend_forecast), refresh.work.calls(ops.store_feature)
    assert blend.args[-1] == store.args[-1] == "mlp:average"
    assert blend.args[2].target == store.args[1].target == "proj_mlp"


def test_merged_positions_follow_the_forecast_by_the_mask() -> None:
    rule = recipe([FF], method={**AVERAGE, "temperature": 0.001}, reuse={"order": 0, "weight": 0.25})
    block, calls = block_of(lambda b, y, x, t: y), Calls(rule)
    store, blend = (work_on(block, (X, C), rule, variant=v) for v in (REFRESH, Variant(stage=0)))
    dense = store.run(X, C, call=calls.make(variant=REFRESH))
    planned: dict[int, Any] = {}
    later = X + 0.1
    got = blend.run(later, C, call=calls.make(remove=12), planned=planned) - later
    plan = planned[0]
    with torch.no_grad():
        new = plan.unmerge(block.ff(plan.merge(later)))
    mask = plan.merged_mask[..., None]
    close(got, torch.where(mask, 0.25 * new + 0.75 * (dense - X), new))
    assert 0 < int(mask.sum()) < mask.numel()


def test_stages_that_unmerge_in_different_ways_store_for_themselves() -> None:
    stages = [
        {"name": "first", "until": 0.5, "sites": ["mlp"], "method": {"name": "ssm"}},
        {"name": "second", "until": 1.0, "sites": ["mlp"], "method": AVERAGE},
    ]
    mixed = recipe(PARALLEL, merged=["mlp"], reuse=REUSE, stages=stages)
    assert [dense_variant(mixed, stage).refresh for stage in (0, 1)] == [0, 1]
    cache = ProgramCache(mixed)
    toy_program(cache, ParallelBlock(), X, T, C)
    assert not cache.refreshes(0, 1)
    assert not cache.refreshes(1, 0)
    assert cache.refreshes(1, 1)
    alike = mixed.override(stages={"first": {"method": AVERAGE}})
    assert [dense_variant(alike, stage).refresh for stage in (0, 1)] == [0, 0]
