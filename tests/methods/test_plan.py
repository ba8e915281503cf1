"""MergePlan: what every plan must keep true, on plans with random groups."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from sdtm_fx.errors import PlanError
from sdtm_fx.plan import MergePlan, identity_plan, plan_from_groups, plan_from_parents

FLOATS = [torch.float32, torch.bfloat16, torch.float16]


def random_parents(seed: int, batch: int, tokens: int, kept: int) -> Tensor:
    """Parents with `kept` representatives per row; the other tokens join any of them."""
    draw = torch.Generator().manual_seed(seed)
    rows = []
    for _ in range(batch):
        order = torch.randperm(tokens, generator=draw)
        parent = torch.arange(tokens)
        parent[order[kept:]] = order[torch.randint(kept, (tokens - kept,), generator=draw)]
        rows.append(parent)
    return torch.stack(rows)


def random_groups(seed: int, batch: int, alone: int, groups: int, size: int) -> MergePlan:
    draw = torch.Generator().manual_seed(seed)
    tokens = alone + groups * size
    order = torch.stack([torch.randperm(tokens, generator=draw) for _ in range(batch)])
    return plan_from_groups(order, alone, size)


@st.composite
def plans(draw: st.DrawFn) -> MergePlan:
    seed, batch = draw(st.integers(0, 1000)), draw(st.integers(1, 3))
    if draw(st.booleans()):
        alone, groups, size = draw(st.integers(0, 9)), draw(st.integers(1, 6)), draw(st.integers(2, 5))
        return random_groups(seed, batch, alone, groups, size)
    tokens = draw(st.integers(1, 40))
    kept = draw(st.integers(1, tokens))
    return plan_from_parents(random_parents(seed, batch, tokens, kept), kept)


def slot_means(plan: MergePlan, x: Tensor) -> Tensor:
    """The mean of every slot, one by one, from `assign` alone."""
    rows = []
    for sample in range(x.shape[0]):
        assign = plan.assign[sample % plan.assign.shape[0]]
        rows.append(torch.stack([x[sample, assign == slot].double().mean(0) for slot in range(plan.kept)]))
    return torch.stack(rows)


@settings(max_examples=60, deadline=None)
@given(plan=plans())
def test_a_plan_covers_every_token_and_every_slot(plan: MergePlan) -> None:
    batch, tokens = plan.assign.shape
    everything = torch.arange(tokens).expand(batch, -1)
    assert torch.equal(plan.order.sort(dim=1).values, everything)
    for row in range(batch):
        counts = torch.bincount(plan.assign[row], minlength=plan.kept)
        assert len(counts) == plan.kept
        assert counts.min() >= 1
        assert torch.equal(counts, plan.sizes[row])
        assert torch.equal(plan.merged_mask[row], counts[plan.assign[row]] > 1)
    assert torch.equal(plan.assign.gather(1, plan.positions), torch.arange(plan.kept).expand(batch, -1))
    assert plan.removed == tokens - plan.kept


@settings(max_examples=60, deadline=None)
@given(plan=plans(), seed=st.integers(0, 1000), width=st.integers(1, 5))
def test_merge_is_the_mean_of_the_slot_and_unmerge_copies_it_back(
    plan: MergePlan, seed: int, width: int
) -> None:
    batch, tokens = plan.assign.shape
    x = torch.randn(batch, tokens, width, generator=torch.Generator().manual_seed(seed))
    merged = plan.merge(x)
    assert merged.shape == (batch, plan.kept, width)
    torch.testing.assert_close(merged.double(), slot_means(plan, x), atol=1e-6, rtol=1e-5)
    back = plan.unmerge(merged)
    for row in range(batch):
        assert torch.equal(back[row], merged[row, plan.assign[row]])
    # Merging what was unmerged changes nothing: the mean of equal values.
    torch.testing.assert_close(plan.merge(back), merged, atol=1e-6, rtol=1e-5)


@settings(max_examples=30, deadline=None)
@given(seed=st.integers(0, 1000), length=st.integers(0, 7), grouped=st.booleans())
def test_a_prefix_stays_as_it_is(seed: int, length: int, grouped: bool) -> None:
    plan = (
        random_groups(seed, 2, 4, 3, 4) if grouped else plan_from_parents(random_parents(seed, 2, 16, 7), 7)
    )
    image, text = torch.randn(2, plan.tokens, 3), torch.randn(2, length, 3)
    behind = plan.placed(length)
    merged = behind.merge(torch.cat([text, image], dim=1))
    assert behind.kept == plan.kept + length
    assert torch.equal(merged[:, :length], text)
    torch.testing.assert_close(merged[:, length:], plan.merge(image))
    assert torch.equal(behind.unmerge(merged)[:, :length], text)
    assert torch.equal(behind.merged_mask[:, length:], plan.merged_mask)
    assert not behind.merged_mask[:, :length].any()
    assert torch.equal(behind.positions[:, length:], plan.positions + length)


def test_a_plan_of_one_row_serves_any_batch() -> None:
    for one in (random_groups(3, 1, 4, 3, 4), plan_from_parents(random_parents(3, 1, 16, 7), 7)):
        x = torch.randn(3, one.tokens, 5)
        for row in range(3):
            torch.testing.assert_close(one.merge(x)[row], one.merge(x[row : row + 1])[0])
        y = torch.randn(3, one.kept, 5)
        assert torch.equal(one.unmerge(y), y[:, one.assign[0]])


def test_ages_grow_where_tokens_share_a_slot() -> None:
    plan = plan_from_parents(torch.tensor([[0, 0, 2, 3, 3, 3]]), 3)
    ages = torch.tensor([[4, 0, 7, 1, 2, 3]], dtype=torch.int32)
    after = plan.next_ages(ages)
    assert after.tolist() == [[5, 1, 0, 2, 3, 4]]
    assert after.dtype == torch.int32


def test_slots_of_parents_are_in_raster_order() -> None:
    plan = plan_from_parents(torch.tensor([[1, 1, 5, 3, 1, 5]]), 3)
    assert plan.positions.tolist() == [[1, 3, 5]]
    assert plan.assign.tolist() == [[0, 0, 2, 1, 0, 2]]


def test_the_identity_plan_returns_what_it_gets() -> None:
    plan = identity_plan(2, 9, torch.device("cpu"))
    x = torch.randn(2, 9, 4)
    assert torch.equal(plan.merge(x), x)
    assert torch.equal(plan.unmerge(x), x)
    assert not plan.merged_mask.any()


@pytest.mark.parametrize("dtype", FLOATS)
def test_means_keep_the_dtype_and_do_not_overflow(dtype: torch.dtype) -> None:
    plan = plan_from_groups(torch.arange(12)[None], 4, 4)
    large = torch.full((1, 12, 3), 30000.0, dtype=dtype)
    assert torch.equal(plan.merge(large), large[:, :6])
    x = torch.randn(1, 12, 64).to(dtype)
    exact = slot_means(plan, x)
    assert plan.merge(x).dtype == dtype
    torch.testing.assert_close(plan.merge(x).double(), exact, atol=4 * torch.finfo(dtype).eps, rtol=0.02)


def test_features_may_be_strided_and_carry_gradients() -> None:
    plan = random_groups(5, 2, 4, 3, 4)
    x = torch.randn(2, 6, plan.tokens, requires_grad=True)
    merged = plan.merge(x.transpose(1, 2))
    torch.testing.assert_close(merged, plan.merge(x.transpose(1, 2).contiguous()))
    plan.unmerge(merged).sum().backward()
    torch.testing.assert_close(x.grad, torch.ones_like(x))


@pytest.mark.parametrize(
    ("verb", "shape", "accepted"),
    [
        ("merge", (2, 15, 3), r"merge: found .*\(2, 15, 3\).*\[2, 16, any width\]"),
        ("unmerge", (2, 16, 3), r"unmerge: found .*\(2, 16, 3\).*\[2, 7, any width\]"),
        ("merge", (3, 16, 3), r"\(3, 16, 3\).*\[2, 16"),
        ("merge", (16, 3), r"merge: found .*\(16, 3\)"),
    ],
)
def test_other_shapes_are_errors(verb: str, shape: tuple[int, ...], accepted: str) -> None:
    plan = plan_from_parents(random_parents(0, 2, 16, 7), 7)
    with pytest.raises(PlanError, match=accepted):
        getattr(plan, verb)(torch.zeros(shape))
