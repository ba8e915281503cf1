"""What a slot holds: the mean, the value of its representative, or a mean of full length."""

from __future__ import annotations

from dataclasses import replace
from typing import get_args

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from sdtm_fx.errors import PlanError
from sdtm_fx.methods import SSM, ToFu, TokenView, ToMe
from sdtm_fx.plan import MergePlan, identity_plan
from sdtm_fx.reductions import Reduce
from tests.methods.test_plan import plans

REDUCES: tuple[Reduce, ...] = get_args(Reduce)


def tokens(plan: MergePlan, seed: int = 0, width: int = 5) -> Tensor:
    batch, count = plan.assign.shape
    return torch.randn(batch, count, width, generator=torch.Generator().manual_seed(seed))


def slots(plan: MergePlan, x: Tensor) -> list[list[Tensor]]:
    """The tokens of every slot, from `assign` alone."""
    return [[x[row, plan.assign[row] == slot].double() for slot in range(plan.kept)] for row in range(len(x))]


@settings(max_examples=40, deadline=None)
@given(plan=plans(), seed=st.integers(0, 99))
def test_pruning_keeps_the_representative_and_nothing_else(plan: MergePlan, seed: int) -> None:
    x = tokens(plan, seed)
    merged = plan.reduced_by("prune").merge(x)
    assert torch.equal(merged, x.gather(1, plan.positions[..., None].expand(-1, -1, 5)))


@settings(max_examples=40, deadline=None)
@given(plan=plans(), seed=st.integers(0, 99))
def test_mlerp_has_the_direction_of_the_mean_and_the_largest_norm(plan: MergePlan, seed: int) -> None:
    x = tokens(plan, seed)
    merged = plan.reduced_by("mlerp").merge(x).double()
    for row, members in enumerate(slots(plan, x)):
        for slot, inside in enumerate(members):
            mean = inside.mean(0)
            expected = mean / mean.norm() * inside.norm(dim=1).max()
            torch.testing.assert_close(merged[row, slot], expected, atol=1e-4, rtol=1e-4)


@settings(max_examples=40, deadline=None)
@given(plan=plans(), seed=st.integers(0, 99))
def test_weights_say_how_many_tokens_one_stands_for(plan: MergePlan, seed: int) -> None:
    """Merging twice with sizes is merging once."""
    x = tokens(plan, seed)
    weights = torch.randint(1, 5, x.shape[:2], generator=torch.Generator().manual_seed(seed))
    merged = plan.merge(x, weights).double()
    for row, members in enumerate(slots(plan, x)):
        for slot, inside in enumerate(members):
            share = weights[row, plan.assign[row] == slot].double()[:, None]
            expected = (share * inside).sum(0) / share.sum()
            torch.testing.assert_close(merged[row, slot], expected, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("reduce", REDUCES)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_constants_pass_and_nothing_is_not_a_number(reduce: Reduce, dtype: torch.dtype) -> None:
    x = torch.randn(2, 48, 8, generator=torch.Generator().manual_seed(3)).to(dtype)
    plan = ToMe().plan(TokenView(x, (6, 8)), 30).reduced_by(reduce)
    for value in (torch.zeros_like(x), torch.full_like(x, 0.5), torch.full_like(x, 20_000.0)):
        back = plan.unmerge(plan.merge(value))
        assert back.dtype == dtype
        torch.testing.assert_close(back, value, rtol=1e-2 if dtype == torch.bfloat16 else 1e-3, atol=0)
    opposed = torch.cat([x[:, :24], -x[:, :24]], dim=1)
    assert torch.isfinite(plan.merge(opposed)).all()


@pytest.mark.parametrize("reduce", REDUCES)
def test_a_slot_of_one_token_is_that_token(reduce: Reduce) -> None:
    x = torch.randn(2, 35, 4)
    plan = replace(identity_plan(2, 35, x.device), reduce=reduce)
    assert torch.equal(plan.merge(x), x)
    some = SSM().plan(TokenView(x, (5, 7)), 9).reduced_by(reduce)
    alone = ~some.merged_mask
    assert torch.equal(some.unmerge(some.merge(x))[alone], x[alone])


@pytest.mark.parametrize("reduce", REDUCES)
def test_tokens_that_cancel_out_become_zero_where_a_mean_is_taken(reduce: Reduce) -> None:
    x = torch.tensor([[[1.0, 2.0], [-1.0, -2.0]]])
    plan = replace(SSM(window=(1, 2)).plan(TokenView(x, (1, 2)), 1), reduce=reduce)
    expected = [[1.0, 2.0]] if reduce == "prune" else [[0.0, 0.0]]
    assert plan.merge(x)[0].tolist() == expected


def test_the_reduction_goes_where_the_plan_goes() -> None:
    x = torch.randn(1, 48, 3)
    plan = ToFu().plan(TokenView(x, (6, 8)), 20)
    assert plan.reduce == plan.placed(4).reduce == plan.repeat(2).reduce == "mlerp"
    assert plan.with_tensors(plan.tensors()).reduce == "mlerp"
    assert plan.reduced_by(None) is plan
    assert plan.reduced_by("prune").reduce == "prune"
    long = torch.cat([torch.ones(1, 4, 3), x], dim=1)
    assert torch.equal(plan.placed(4).merge(long)[:, :4], long[:, :4]), "text stays as it is"


@pytest.mark.parametrize("reduce", REDUCES)
@pytest.mark.parametrize("method", [ToMe(), SSM()], ids=repr)
def test_a_compiler_sees_one_graph(reduce: Reduce, method: ToMe | SSM) -> None:
    torch._dynamo.reset()

    def run(x: Tensor) -> Tensor:
        plan = method.plan(TokenView(x, (6, 8)), 18).reduced_by(reduce)
        return plan.unmerge(plan.merge(x))

    x = torch.randn(2, 48, 8, generator=torch.Generator().manual_seed(1))
    compiled = torch.compile(run, fullgraph=True, backend="aot_eager")
    torch.testing.assert_close(compiled(x), run(x))


def test_weights_where_no_mean_is_taken_are_an_error() -> None:
    x = torch.randn(1, 48, 3)
    plan = ToMe().plan(TokenView(x, (6, 8)), 20)
    with pytest.raises(PlanError, match=r"weights of shape \(1, 48\) for 'prune'; accepted \[1, 48\]"):
        plan.reduced_by("prune").merge(x, torch.ones(1, 48))
    with pytest.raises(PlanError, match=r"weights of shape \(1, 47\) for 'mean'"):
        plan.merge(x, torch.ones(1, 47))
