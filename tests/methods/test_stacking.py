"""Stacked plans: merging slots once more, by the tokens that they stand for, is merging once."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from sdtm_fx.errors import PlanError
from sdtm_fx.plan import MergePlan, identity_plan, plan_from_parents
from sdtm_fx.reductions import Reduce
from sdtm_fx.stacking import composed, stacked
from tests.methods.test_plan import plans, random_parents


@st.composite
def stacks(draw: st.DrawFn) -> tuple[MergePlan, MergePlan, MergePlan]:
    """Tokens to slots, their slots to fewer, and these to fewer again."""
    outer, seed = draw(plans()), draw(st.integers(0, 1000))
    made = [outer]
    for _ in range(2):
        slots = made[-1].kept
        kept = draw(st.integers(1, slots))
        parents = random_parents(seed, outer.assign.shape[0], slots, kept)
        made.append(stacked(plan_from_parents(parents, kept), made[-1].sizes))
    return made[0], made[1], made[2]


def tokens(plan: MergePlan, seed: int, dtype: torch.dtype = torch.float32) -> Tensor:
    draw = torch.Generator().manual_seed(seed)
    return torch.randn(*plan.assign.shape, 5, generator=draw, dtype=torch.float64).to(dtype)


@settings(max_examples=30, deadline=None)
@given(plans_=stacks(), seed=st.integers(0, 99))
def test_merging_in_stages_is_merging_once(plans_: tuple[MergePlan, ...], seed: int) -> None:
    outer, middle, inner = plans_
    x = tokens(outer, seed)
    two, three = composed(outer, middle), composed(composed(outer, middle), inner)
    torch.testing.assert_close(middle.merge(outer.merge(x)), two.merge(x), rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(
        inner.merge(middle.merge(outer.merge(x))), three.merge(x), rtol=1e-5, atol=1e-5
    )
    assert torch.equal(inner.sizes, three.sizes)
    assert torch.equal(inner.sizes.sum(1), torch.full_like(inner.sizes[:, 0], outer.tokens))
    y = torch.randn(x.shape[0], inner.kept, 3)
    assert torch.equal(outer.unmerge(middle.unmerge(inner.unmerge(y))), three.unmerge(y))


@settings(max_examples=20, deadline=None)
@given(plans_=stacks(), seed=st.integers(0, 99))
def test_pruning_in_stages_is_pruning_once(plans_: tuple[MergePlan, ...], seed: int) -> None:
    outer, middle = (plan.reduced_by("prune") for plan in plans_[:2])
    x = tokens(outer, seed)
    once = composed(outer, middle)
    assert once.reduce == "prune"
    assert torch.equal(middle.merge(outer.merge(x)), once.merge(x))


def test_without_sizes_the_mean_is_another_one() -> None:
    """Three equal tokens and one more: their mean counts three to one."""
    x = torch.tensor([[0.0, 0.0, 0.0, 4.0]])[..., None]
    outer = plan_from_parents(torch.tensor([[0, 0, 0, 3]]), 2)
    inner = plan_from_parents(torch.tensor([[0, 0]]), 1)
    assert inner.merge(outer.merge(x)).item() == 2.0
    assert stacked(inner, outer.sizes).merge(outer.merge(x)).item() == 1.0


def test_the_longest_slot_gives_mlerp_its_norm() -> None:
    """The mean of (3, 0) three times and (0, 4) points along (9, 4); the longest slot has norm 4."""
    slots = torch.tensor([[[3.0, 0.0], [0.0, 4.0]]])
    inner = stacked(plan_from_parents(torch.tensor([[0, 0]]), 1), torch.tensor([[3, 1]]))
    direction = torch.tensor([9.0, 4.0])
    expected = direction / direction.norm() * 4
    torch.testing.assert_close(inner.reduced_by("mlerp").merge(slots)[0, 0], expected)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("reduce", ["mean", "prune", "mlerp"])
def test_slots_of_one_pass_to_the_last_bit(dtype: torch.dtype, reduce: Reduce) -> None:
    x = torch.randn(2, 24, 6, generator=torch.Generator().manual_seed(0)).to(dtype)
    sizes = torch.randint(1, 9, (2, 24), generator=torch.Generator().manual_seed(1))
    plan = stacked(identity_plan(2, 24, x.device), sizes).reduced_by(reduce)
    assert torch.equal(plan.merge(x), x)
    assert not plan.merged_mask.any()
    assert plan.merge(x).dtype == dtype
    pair = stacked(plan_from_parents(torch.tensor([[0, 0, *range(2, 24)]]), 23), sizes[:1])
    assert torch.equal(pair.merge(x)[:, 1:], x[:, 2:])
    assert pair.merged_mask.sum() == 2


def test_sizes_go_where_the_plan_goes() -> None:
    sizes = torch.tensor([[2, 3, 1], [1, 1, 4]])
    plan = stacked(plan_from_parents(torch.tensor([[0, 0, 2], [0, 1, 1]]), 2), sizes)
    assert plan.sizes.tolist() == [[5, 1], [1, 5]]
    assert plan.members.tolist() == [[2, 1], [1, 2]]
    assert plan.repeat(2).sizes.tolist() == [[5, 1], [1, 5]] * 2
    assert plan.with_tensors(t + 0 for t in plan.tensors()).sizes.tolist() == plan.sizes.tolist()
    behind = plan.placed(2)
    assert behind.sizes.tolist() == [[1, 1, 5, 1], [1, 1, 1, 5]]
    x = torch.randn(2, 5, 4)
    torch.testing.assert_close(behind.merge(x)[:, 2:], plan.merge(x[:, 2:]))
    assert torch.equal(behind.merge(x)[:, :2], x[:, :2])


def test_plans_for_other_slots_are_refused() -> None:
    outer, inner = identity_plan(1, 6, torch.device("cpu")), identity_plan(1, 5, torch.device("cpu"))
    with pytest.raises(PlanError, match=r"found a plan over 5 tokens; accepted one over the 6 slots"):
        composed(outer, inner)
    with pytest.raises(PlanError, match=r"found sizes of shape \(1, 6\); accepted \[1, 5\], one per slot"):
        stacked(inner, outer.sizes)
