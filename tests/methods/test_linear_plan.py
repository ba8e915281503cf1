"""LinearPlan: matrices that sum to one, two ways back, and all that plans must do."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from sdtm_fx.errors import PlanError
from sdtm_fx.linear_plan import LinearPlan, weigh_tokens
from sdtm_fx.methods import TokenView, ToMA
from sdtm_fx.regions import stripes
from sdtm_fx.runtime.call import BlockContext
from sdtm_fx.runtime.ops import plan_tokens
from sdtm_fx.short_rows import ShortRows
from tests.passes.blocks import image
from tests.passes.working import ATTN, FF, Calls, recipe

GRID, TOKENS = (6, 7), 42
FORMS = [
    ToMA(tile=(2, 3)),
    ToMA(region="tile", tile=(2, 3), temperature=0.1),
    ToMA(region="stripe", stripes=4, temperature=0.05),
    ToMA(region="tile", tile=(2, 2), unmerge="pseudo_inverse", temperature=0.1),
]


def noise(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def plan_of(method: ToMA, remove: int = 17, batch: int = 2, seed: int = 0) -> LinearPlan:
    plan = method.plan(TokenView(noise(batch, TOKENS, 8, seed=seed), GRID), remove)
    assert isinstance(plan, LinearPlan)
    return plan


def dense(plan: LinearPlan) -> tuple[Tensor, Tensor]:
    """The whole matrices, [P, M, N] and [P, N, M], read off unit vectors."""
    batch = plan.positions.shape[0]
    merge = plan.merge(torch.eye(plan.tokens).expand(batch, -1, -1))
    return merge, plan.unmerge(torch.eye(plan.kept).expand(batch, -1, -1))


@pytest.mark.parametrize("method", FORMS, ids=repr)
@settings(max_examples=10, deadline=None)
@given(remove=st.integers(1, 24), seed=st.integers(0, 99))
def test_rows_of_the_merge_and_of_the_unmerge_sum_to_one(method: ToMA, remove: int, seed: int) -> None:
    plan = plan_of(method, remove, seed=seed)
    merge, unmerge = dense(plan)
    torch.testing.assert_close(merge.sum(dim=2), torch.ones(2, plan.kept))
    assert merge.min() >= 0
    tolerance = 1e-5 if plan.inverse is None else 1e-3
    torch.testing.assert_close(unmerge.sum(dim=2), torch.ones(2, TOKENS), atol=tolerance, rtol=0)
    if plan.inverse is None:
        assert unmerge.min() >= 0
        columns = plan.weights.sum(dim=2)
        torch.testing.assert_close(columns, torch.ones_like(columns))
    # What a plan holds is linear in the tokens of a region, not quadratic in those of the grid.
    assert (
        plan.weights[0].numel()
        == plan.macs_per_channel
        <= plan.regions.size * (plan.kept + plan.regions.number)
    )


@pytest.mark.parametrize("temperature", [0.05, 0.3])
def test_the_transpose_and_the_pseudo_inverse_are_what_they_are_called(temperature: float) -> None:
    method = ToMA(region="tile", tile=(2, 3), temperature=temperature, unmerge="pseudo_inverse")
    plan = plan_of(method, remove=12)
    merge, unmerge = (m.double() for m in dense(plan))
    close = {"atol": 2e-3, "rtol": 0.0}
    torch.testing.assert_close(merge @ unmerge @ merge, merge, **close)
    torch.testing.assert_close(unmerge @ merge @ unmerge, unmerge, **close)
    for product in (merge @ unmerge, unmerge @ merge):
        torch.testing.assert_close(product, product.mT, **close)
    torch.testing.assert_close(unmerge, torch.linalg.pinv(merge), **close)
    # As the paper writes it, with the rows of A brought back to what they were.
    a, y = plan.weights.double(), noise(2, plan.weights.shape[1], plan.weights.shape[2], 3, seed=5).double()
    formula = a.mT @ torch.linalg.inv(a @ a.mT) @ (plan.mass[..., None] * y)
    slots = plan.rows.pack(y)
    back = plan.unmerge(torch.cat([slots, torch.zeros(2, plan.regions.outside, 3)], dim=1))
    torch.testing.assert_close(plan.regions.split(back), formula, **close)


def test_cold_weights_are_an_assignment_and_both_ways_back_agree() -> None:
    transpose, inverse = (
        plan_of(ToMA(region="tile", tile=(2, 3), temperature=1e-4, unmerge=way))
        for way in ("transpose", "pseudo_inverse")
    )
    assert (transpose.weights.max(dim=2).values > 0.999).all()
    y = noise(2, transpose.kept, 4)
    torch.testing.assert_close(transpose.unmerge(y), inverse.unmerge(y), atol=1e-3, rtol=1e-3)
    copies = y.gather(1, transpose.slots[..., None].expand(-1, -1, 4))
    torch.testing.assert_close(transpose.unmerge(y), copies, atol=1e-2, rtol=1e-2)
    sizes = torch.zeros(2, transpose.kept).scatter_add_(1, transpose.slots, torch.ones(2, TOKENS))
    assert torch.equal(transpose.merged_mask, sizes.gather(1, transpose.slots) > 1)


def test_a_destination_is_a_mixture_too() -> None:
    warm = plan_of(ToMA(region="tile", tile=(2, 3), temperature=10.0))
    inside = torch.zeros(1, TOKENS, dtype=torch.bool)
    inside[:, warm.regions.numbers(torch.device("cpu")).flatten()] = True
    assert torch.equal(warm.merged_mask, inside.expand(2, -1)), "only what is in no region is alone"
    ages = torch.full((2, TOKENS), 3, dtype=torch.int32)
    assert torch.equal(warm.next_ages(ages), torch.where(inside, 4, 0).to(torch.int32).expand(2, -1))


@pytest.mark.parametrize("method", FORMS, ids=repr)
@pytest.mark.parametrize("length", [0, 5])
def test_a_prefix_stays_as_it_is(method: ToMA, length: int) -> None:
    plan = plan_of(method)
    image, text = noise(2, TOKENS, 3), noise(2, length, 3, seed=1)
    behind = plan.placed(length)
    merged = behind.merge(torch.cat([text, image], dim=1))
    assert (behind.kept, behind.tokens, behind.removed) == (plan.kept + length, TOKENS + length, plan.removed)
    assert torch.equal(merged[:, :length], text)
    assert torch.equal(merged[:, length:], plan.merge(image))
    back = behind.unmerge(merged)
    assert torch.equal(back[:, :length], text)
    assert torch.equal(back[:, length:], plan.unmerge(plan.merge(image)))
    assert torch.equal(behind.merged_mask[:, length:], plan.merged_mask)
    assert not behind.merged_mask[:, :length].any()
    assert torch.equal(behind.positions[:, length:], plan.positions + length)
    assert torch.equal(behind.slots[:, length:], plan.slots + length)
    assert torch.equal(behind.slots[:, :length], torch.arange(length).expand(2, -1))


@pytest.mark.parametrize("method", FORMS, ids=repr)
def test_one_plan_serves_any_batch_and_halves_repeat_it(method: ToMA) -> None:
    one, x = plan_of(method, batch=1), noise(3, TOKENS, 5)
    for row in range(3):
        torch.testing.assert_close(one.merge(x)[row], one.merge(x[row : row + 1])[0])
    y = one.merge(x)
    torch.testing.assert_close(one.unmerge(y)[2], one.unmerge(y[2:])[0])
    two = plan_of(method)
    twice = two.repeat(2)
    assert [t.shape[0] for t in twice.tensors()] == [4] * len(two.tensors())
    x = noise(4, TOKENS, 5)
    torch.testing.assert_close(twice.merge(x)[2:], two.merge(x[2:]))


@pytest.mark.parametrize("method", FORMS, ids=repr)
def test_a_kept_plan_takes_another_over_in_place(method: ToMA) -> None:
    kept, other = plan_of(method), plan_of(method, seed=9)
    places, x = [t.data_ptr() for t in kept.tensors()], noise(2, TOKENS, 3)
    assert not torch.equal(kept.merge(x), other.merge(x))
    kept.copy_(other)
    assert [t.data_ptr() for t in kept.tensors()] == places
    assert torch.equal(kept.merge(x), other.merge(x))
    assert torch.equal(kept.unmerge(x[:, : kept.kept]), other.unmerge(x[:, : kept.kept]))
    assert len(kept.names()) == len(kept.tensors())


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
@pytest.mark.parametrize("method", FORMS, ids=repr)
def test_features_keep_their_dtype_and_do_not_overflow(method: ToMA, dtype: torch.dtype) -> None:
    plan, large = plan_of(method), torch.full((2, TOKENS, 3), 30000.0, dtype=dtype)
    merged = plan.merge(large)
    assert merged.dtype == plan.unmerge(merged).dtype == dtype
    steps = 3e-4 if dtype == torch.float64 else 4 * torch.finfo(dtype).eps
    torch.testing.assert_close(plan.unmerge(merged), large, atol=0, rtol=steps)
    x = noise(2, TOKENS, 64).to(dtype)
    exact = plan.merge(x.double())
    torch.testing.assert_close(plan.merge(x).double(), exact, atol=8 * torch.finfo(dtype).eps, rtol=0)
    if dtype == torch.bfloat16:  # autocast on a CPU fails on the others by itself
        with torch.autocast("cpu", dtype=torch.bfloat16):
            again = plan.merge(x)
        assert torch.equal(again, plan.merge(x))


@pytest.mark.parametrize("unmerge", ["transpose", "pseudo_inverse"])
@pytest.mark.parametrize(
    "metric", [torch.zeros(1, TOKENS, 4), torch.ones(1, TOKENS, 4)], ids=["zero", "equal"]
)
def test_equal_tokens_make_a_plan_that_keeps_constants(metric: Tensor, unmerge: str) -> None:
    for region in ("global", "tile"):
        method = ToMA(region=region, tile=(2, 3), unmerge=unmerge)  # type: ignore[arg-type]
        plan = method.plan(TokenView(metric, GRID), 15)
        assert all(torch.isfinite(t).all() for t in plan.tensors())
        x = torch.full((1, TOKENS, 2), 3.0)
        torch.testing.assert_close(plan.unmerge(plan.merge(x)), x, atol=1e-3, rtol=0)


def test_features_may_be_strided_and_carry_gradients() -> None:
    plan = plan_of(FORMS[1])
    x = noise(2, 6, TOKENS).requires_grad_()
    merged = plan.merge(x.transpose(1, 2))
    torch.testing.assert_close(merged, plan.merge(x.transpose(1, 2).contiguous()))
    plan.unmerge(merged).sum().backward()
    assert x.grad is not None
    # Every token gives what the slots that it is part of give on: as much in all as there are tokens.
    torch.testing.assert_close(x.grad.sum(dim=2), torch.full((2, 6), float(TOKENS)))


@pytest.mark.parametrize(
    ("verb", "shape", "accepted"),
    [
        ("merge", (2, 41, 3), r"merge: found .*\(2, 41, 3\).*\[2, 42, any width\]"),
        ("unmerge", (2, 42, 3), r"unmerge: found .*\(2, 42, 3\).*\[2, 25, any width\]"),
        ("merge", (3, 42, 3), r"\(3, 42, 3\).*\[2, 42"),
        ("unmerge", (25, 3), r"unmerge: found .*\(25, 3\)"),
    ],
)
def test_other_shapes_are_errors(verb: str, shape: tuple[int, ...], accepted: str) -> None:
    with pytest.raises(PlanError, match=accepted):
        getattr(plan_of(FORMS[0]), verb)(torch.zeros(shape))


def test_slots_are_means_and_nothing_else() -> None:
    plan = plan_of(FORMS[0])
    assert plan.reduced_by(None) is plan
    assert plan.reduced_by("mean") is plan
    with pytest.raises(
        PlanError, match="found reduce 'prune' for slots that are weighted means; accepted 'mean'"
    ):
        plan.reduced_by("prune")


def test_what_a_missing_row_names_does_not_matter() -> None:
    metric, rows = noise(1, 8, 4), ShortRows(2, 2, 1)
    plans = [
        weigh_tokens(
            metric, torch.tensor([[[1, 2], [5, last]]]), stripes((2, 4), 2), rows, temperature=0.1,
            pseudo_inverse=True,
        )
        for last in (5, 7)
    ]  # fmt: skip
    assert plans[0].positions.tolist() == [[1, 2, 5]]
    assert all(torch.equal(a, b) for a, b in zip(plans[0].tensors(), plans[1].tensors(), strict=True))


@pytest.mark.parametrize("method", FORMS, ids=repr)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_prepared_plan_computes_the_same_bit_for_bit(method: ToMA, dtype: torch.dtype) -> None:
    plan = plan_of(method)
    ready = plan.prepared(dtype)
    assert ready.ways is not None
    assert all(matrix.dtype == dtype for matrix in ready.ways)
    for kind in (torch.float32, torch.bfloat16):  # features of another dtype are served too
        x, y = noise(2, TOKENS, 5).to(kind), noise(2, plan.kept, 5, seed=1).to(kind)
        assert torch.equal(ready.merge(x), plan.merge(x))
        assert torch.equal(ready.unmerge(y), plan.unmerge(y))
        behind, lead = ready.placed(3), x[:, :3]
        assert torch.equal(behind.merge(torch.cat([lead, x], 1)), torch.cat([lead, plan.merge(x)], 1))
    assert [t.data_ptr() for t in ready.tensors()] == [t.data_ptr() for t in plan.tensors()]


def test_other_tensors_are_not_merged_by_what_was_prepared() -> None:
    one, other = plan_of(FORMS[1]), plan_of(FORMS[1], seed=1)
    x = noise(2, TOKENS, 5)
    moved = one.prepared(x.dtype).with_tensors(other.tensors())
    assert torch.equal(moved.merge(x), other.merge(x))
    assert not torch.equal(moved.merge(x), one.merge(x))
    twice = one.prepared(x.dtype).repeat(2)
    assert torch.equal(twice.merge(torch.cat([x, x]))[2:], one.merge(x))


def test_the_plans_of_a_call_are_prepared_and_those_that_are_kept_hold_no_more() -> None:
    rules = recipe([ATTN, FF], method={"name": "toma", "tile": [2, 2]}, plan={"every_steps": 2})
    calls, planned = Calls(rules), {}
    made = plan_tokens(BlockContext(calls.make(), 0, planned), image().bfloat16())
    assert isinstance(made, LinearPlan)
    assert made.ways is not None and made.ways[0].dtype == torch.bfloat16  # noqa: PT018
    kept = calls.state.plans[0]
    assert isinstance(kept, LinearPlan)
    assert kept.ways is None
