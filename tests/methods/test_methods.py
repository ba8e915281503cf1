"""What every merging method must do, whatever the grid."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from sdtm_fx.attention_score import AttentionHeads
from sdtm_fx.base_plan import Plan
from sdtm_fx.grids import TokenGrid, tokens_on
from sdtm_fx.methods import (
    FIDM,
    IDM,
    METHODS,
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
    plan_merge,
)
from sdtm_fx.plan import MergePlan
from sdtm_fx.windows import Windows

MERGING: list[Method] = [
    SSM(),
    SSM(window=(1, 3), include_diagonal=True, age_sign=1),
    SSM(select="random", age_weight=0.0),
    SSM(select="dissimilar"),
    FIDM(),
    FIDM(window=(2, 3), target="random"),
    FIDM(target="youngest"),
    Random(),
    Uniform(),
    Uniform(window=(1, 3)),
    ToDo(),
    ToDo(factor=3),
    ToMe(),
    ToMe(random=False),
    ToFu(),
    ToFu(reduce="prune", window=(1, 3)),
    CAToMe(),
    SiTo(),
    SiTo(window=(3, 2), noise_alpha=0.0),
    Importance(),
    Importance(metric="grid", pool=1.4),
    LocalMatch(),
    LocalMatch(radius=0, target="first", age_weight=0.1),
    LocalMatch(radius=2, target="random"),
    IDM(),
    IDM(window=(2, 2), rank="similar"),
    IDM(window=(2, 2), radius=1, rank="both"),
    AtEdm(),
    AtEdm(probe_queries=4, band=(0.0, 0.02)),
    AtEdm(rank="power", similarity="cosine"),
    AtEdm(rank="entropy", iterations=2),
    TokenCache(),
    TokenCache(rank="random", window=(3, 2), age_weight=0.0),
]
"""Methods whose plans assign every token to one slot."""
MIXING: list[Method] = [
    ToMA(tile=(2, 2)),
    ToMA(select="global", temperature=0.1),
    ToMA(region="tile", tile=(2, 3), temperature=0.05),
    ToMA(region="stripe", stripes=3),
    ToMA(region="tile", tile=(2, 2), unmerge="pseudo_inverse", temperature=0.2),
]
"""Methods whose plans mix tokens and slots."""
ALL = [*MERGING, *MIXING]
GRIDS = st.one_of(
    st.tuples(st.integers(1, 9), st.integers(1, 9)),
    st.tuples(st.just(1), st.integers(1, 40)),
    st.sampled_from([(33, 47), (8, 8), (16, 8)]),
    st.tuples(st.integers(1, 5), st.integers(1, 6), st.integers(1, 6)),
    st.sampled_from([(3, 5, 7), (5, 4, 10), (2, 8, 6)]),
)
"""Sides of images, and of videos: frames first, odd ones among them."""


def make_heads(draw: torch.Generator, tokens: int, batch: int) -> AttentionHeads:
    query, key, text = (torch.randn(batch, 2, n, 4, generator=draw) for n in (tokens, tokens, 5))
    return AttentionHeads(query, key, text)


def make_view(seed: int, grid: TokenGrid, batch: int = 2, dtype: torch.dtype = torch.float32) -> TokenView:
    draw = torch.Generator().manual_seed(seed)
    tokens = tokens_on(grid)
    return TokenView(
        metric=torch.randn(batch, tokens, 8, generator=draw).to(dtype),
        grid=grid,
        ages=torch.randint(0, 5, (batch, tokens), generator=draw, dtype=torch.int32),
        attention=torch.rand(batch, tokens, generator=draw),
        salt=seed,
        importance=torch.rand(batch, tokens, generator=draw),
        heads=make_heads(draw, tokens, batch),
    )


def round_trip(plan: Plan, x: Tensor) -> Tensor:
    return plan.unmerge(plan.merge(x))


def same_slots(plan: Plan, other: Plan) -> bool:
    return all(torch.equal(a, b) for a, b in zip(plan.tensors(), other.tensors(), strict=True))


def half_of(method: Method, grid: TokenGrid) -> int:
    """About half of what the method can remove."""
    return method.capacity(grid) // 2 // method.quantum() * method.quantum()


def test_no_registered_method_is_left_out() -> None:
    assert {type(m) for m in ALL} == {kind for kind in METHODS.values() if kind.merges}


@pytest.mark.parametrize("method", MERGING, ids=repr)
@settings(max_examples=12, deadline=None)
@given(grid=GRIDS, seed=st.integers(0, 99), part=st.floats(0, 1))
def test_the_count_is_exact_and_the_slots_are_whole(
    method: Method, grid: TokenGrid, seed: int, part: float
) -> None:
    tokens, most, step = tokens_on(grid), method.capacity(grid), method.quantum()
    assert 0 <= most < tokens
    remove = int(part * most) // step * step
    view = make_view(seed, grid)
    plan = method.plan(view, remove)
    assert isinstance(plan, MergePlan)
    assert plan.assign.shape == (2, tokens)
    assert plan.kept == tokens - remove
    assert plan.positions.shape == plan.starts.shape == (2, plan.kept)
    for row in range(2):
        counts = torch.bincount(plan.assign[row], minlength=plan.kept)
        assert len(counts) == plan.kept
        assert counts.min() >= 1
        assert torch.equal(counts, plan.sizes[row])
    assert torch.equal(plan.order.sort(dim=1).values, torch.arange(tokens).expand(2, -1))
    assert torch.equal(plan.assign.gather(1, plan.positions), torch.arange(plan.kept).expand(2, -1))
    y = torch.randn(2, plan.kept, 3)
    torch.testing.assert_close(plan.merge(plan.unmerge(y)), y)


@pytest.mark.parametrize("method", ALL, ids=repr)
@settings(max_examples=12, deadline=None)
@given(grid=GRIDS, seed=st.integers(0, 99), part=st.floats(0, 1))
def test_every_plan_keeps_its_count_and_constants(
    method: Method, grid: TokenGrid, seed: int, part: float
) -> None:
    tokens, most, step = tokens_on(grid), method.capacity(grid), method.quantum()
    remove = int(part * most) // step * step
    plan = method.plan(make_view(seed, grid), remove)
    assert (plan.tokens, plan.kept) == (tokens, tokens - remove)
    assert plan.positions.shape == (2, plan.kept)
    assert all(len(set(row.tolist())) == plan.kept for row in plan.positions)
    assert plan.slots.shape == plan.merged_mask.shape == (2, tokens)
    assert 0 <= int(plan.slots.min()) <= int(plan.slots.max()) < plan.kept
    constant = torch.full((2, tokens, 3), 2.5)
    torch.testing.assert_close(plan.merge(constant), constant[:, : plan.kept])
    torch.testing.assert_close(round_trip(plan, constant), constant, atol=1e-3, rtol=0)
    alone = ~plan.merged_mask
    x = torch.randn(2, tokens, 3, generator=torch.Generator().manual_seed(seed))
    if isinstance(plan, MergePlan):
        torch.testing.assert_close(round_trip(plan, x)[alone], x[alone])


@pytest.mark.parametrize("method", ALL, ids=repr)
def test_removing_nothing_changes_nothing(method: Method) -> None:
    view = make_view(1, (5, 7))
    x = torch.randn(2, 35, 4)
    plan = method.plan(view, 0)
    assert torch.equal(plan.merge(x), x)
    assert torch.equal(round_trip(plan, x), x)


@pytest.mark.parametrize("method", ALL, ids=repr)
def test_samples_do_not_see_each_other(method: Method) -> None:
    view = make_view(2, (6, 7), batch=3)
    remove = method.capacity(view.grid) // 2 // method.quantum() * method.quantum()
    swap = [2, 0, 1]
    assert view.ages is not None
    assert view.attention is not None
    assert view.importance is not None
    assert view.heads is not None
    assert view.heads.text_key is not None
    other = TokenView(
        view.metric[swap],
        view.grid,
        view.ages[swap],
        view.attention[swap],
        view.salt,
        view.importance[swap],
        AttentionHeads(view.heads.query[swap], view.heads.key[swap], view.heads.text_key[swap]),
    )
    plan, swapped = method.plan(view, remove), method.plan(other, remove)
    # Products of a larger batch may add in another order.
    close = zip(plan.tensors(), swapped.tensors(), strict=True)
    assert all(torch.allclose(a[swap], b, atol=1e-5) for a, b in close)
    assert torch.equal(plan.positions[swap], swapped.positions)


@pytest.mark.parametrize("method", ALL, ids=repr)
def test_capacity_can_be_reached_and_plans_repeat(method: Method) -> None:
    view = make_view(4, (9, 11))
    most = method.capacity(view.grid)
    plan = method.plan(view, most)
    assert plan.removed == most
    assert same_slots(plan, method.plan(view, most))


@pytest.mark.parametrize("method", ALL, ids=repr)
def test_zero_tokens_and_missing_ages_are_no_trouble(method: Method) -> None:
    zeros = torch.zeros(1, 2, 48, 4)
    view = TokenView(
        torch.zeros(1, 48, 8),
        (6, 8),
        attention=torch.zeros(1, 48),
        importance=torch.zeros(1, 48),
        heads=AttentionHeads(zeros, zeros, zeros[:, :, :5]),
    )
    remove = method.capacity(view.grid) // 2 // method.quantum() * method.quantum()
    plan = method.plan(view, remove)
    x = torch.randn(1, 48, 3)
    assert torch.isfinite(round_trip(plan, x)).all()
    whole = make_view(3, (6, 8))
    none = replace(whole, ages=None)
    fresh = replace(whole, ages=torch.zeros(2, 48, dtype=torch.int32))
    assert same_slots(method.plan(none, remove), method.plan(fresh, remove))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("method", ALL, ids=repr)
def test_low_precision_chooses_the_same_tokens(method: Method, dtype: torch.dtype) -> None:
    # Values that low precision holds exactly: the metric maths are float32, so nothing may differ.
    view = make_view(5, (12, 10), dtype=dtype)
    full = replace(view, metric=view.metric.float())
    remove = method.capacity(view.grid) // 2 // method.quantum() * method.quantum()
    assert same_slots(method.plan(view, remove), method.plan(full, remove))
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert same_slots(method.plan(full, remove), method.plan(view, remove))


@pytest.mark.parametrize(
    "method", [m for m in MERGING if isinstance(m, SSM | FIDM | LocalMatch | Uniform)], ids=repr
)
def test_leftover_tokens_stay_as_they_are(method: Method) -> None:
    view = make_view(6, (7, 10))
    left = Windows(view.grid, method.window).leftovers(torch.device("cpu"))  # type: ignore[attr-defined]
    plan = method.plan(view, method.capacity(view.grid))
    assert len(left) > 0
    assert not plan.merged_mask[:, left].any()
    x = torch.randn(2, 70, 3)
    assert torch.equal(round_trip(plan, x)[:, left], x[:, left])


@pytest.mark.parametrize("method", ALL, ids=repr)
def test_plans_work_without_data(method: Method) -> None:
    view = make_view(0, (6, 8))
    assert view.ages is not None
    assert view.attention is not None
    assert view.importance is not None
    queries = torch.empty(2, 2, 48, 4, device="meta")
    empty = TokenView(
        view.metric.to("meta"),
        view.grid,
        view.ages.to("meta"),
        view.attention.to("meta"),
        importance=view.importance.to("meta"),
        heads=AttentionHeads(queries, queries, queries[:, :, :5]),
    )
    remove = method.capacity(view.grid)
    plan = method.plan(empty, remove)
    x = torch.empty(2, 48, 5, device="meta")
    assert plan.merge(x).shape == (2, 48 - remove, 5)
    assert round_trip(plan, x).shape == x.shape


def test_every_name_makes_its_method() -> None:
    for name, kind in METHODS.items():
        options: dict[str, Any] = {}
        method = kind(**options)
        assert method.name == name
        assert method.wants() <= method.needs <= {"ages", "attention", "heads", "text", "importance"}
    view = make_view(0, (4, 4))
    by_name = plan_merge("ssm", view.metric, grid=(4, 4), remove=6, ages=view.ages, age_weight=0.2)
    assert same_slots(by_name, SSM(age_weight=0.2).plan(view, 6))
    assert same_slots(
        plan_merge(FIDM(), view.metric, grid=(4, 4), remove=6), FIDM().plan(TokenView(view.metric, (4, 4)), 6)
    )
