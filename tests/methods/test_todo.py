"""ToDo is nearest-exact sampling of the grid, at any size."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.nn.functional import interpolate

from sdtm_fx.errors import PlanError
from sdtm_fx.methods import OptionError, ToDo, TokenView, plan_merge

SIDES = st.integers(1, 20)
FACTORS = st.integers(2, 5)


def tokens(count: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(2, count, 3, generator=torch.Generator().manual_seed(seed))


@settings(max_examples=60, deadline=None)
@given(SIDES, SIDES, FACTORS)
def test_it_keeps_what_nearest_exact_interpolation_keeps(height: int, width: int, factor: int) -> None:
    x, method = tokens(height * width), ToDo(factor=factor)
    plan = method.plan(TokenView(x, (height, width)), method.capacity((height, width)))
    size = -(-height // factor), -(-width // factor)
    assert plan.kept == size[0] * size[1]
    sampled = interpolate(x.mT.reshape(2, 3, height, width), size=size, mode="nearest-exact")
    assert torch.equal(plan.merge(x), sampled.flatten(2).mT)
    back = interpolate(sampled, size=(height, width), mode="nearest-exact")
    assert torch.equal(plan.unmerge(plan.merge(x)), back.flatten(2).mT)


@pytest.mark.parametrize("factor", [2, 3, 4])
def test_where_the_factor_divides_it_is_the_released_stride(factor: int) -> None:
    grid = (4 * factor, 3 * factor)
    x = tokens(grid[0] * grid[1])
    plan = ToDo(factor=factor).plan(TokenView(x, grid), grid[0] * grid[1] - 12)
    strided = interpolate(x.mT.reshape(2, 3, *grid), scale_factor=1 / factor, mode="nearest-exact")
    assert torch.equal(plan.merge(x), strided.flatten(2).mT)
    assert plan.sizes.unique().tolist() == [factor * factor]


@settings(max_examples=40, deadline=None)
@given(SIDES, SIDES, FACTORS)
def test_no_token_is_far_from_its_representative(height: int, width: int, factor: int) -> None:
    x, method = tokens(height * width), ToDo(factor=factor)
    plan = method.plan(TokenView(x, (height, width)), method.capacity((height, width)))
    parent = plan.positions.gather(1, plan.assign)[0]
    own = torch.arange(height * width)
    assert (parent // width - own // width).abs().max() <= factor // 2
    assert (parent % width - own % width).abs().max() <= factor // 2


def test_below_the_full_ratio_cells_go_one_by_one_and_are_spread() -> None:
    x, method = tokens(256), ToDo()
    plan = method.plan(TokenView(x, (16, 16)), 96)  # half of the 64 cells
    cells = plan.merged_mask[0].view(8, 2, 8, 2).float().sum(dim=(1, 3))
    assert set(cells.flatten().tolist()) == {0.0, 4.0}
    quarters = cells.view(2, 4, 2, 4).sum(dim=(1, 3)) / 4
    assert quarters.min() >= 6  # 8 expected
    odd = method.plan(TokenView(x, (16, 16)), 97)
    assert sorted(odd.sizes[0].tolist())[-33:] == [2] + [4] * 32


def test_what_the_tokens_hold_has_no_say() -> None:
    one, other = (ToDo().plan(TokenView(tokens(63, seed), (7, 9), salt=seed), 30) for seed in (0, 1))
    assert torch.equal(one.assign, other.assign)


def test_slots_hold_one_token_or_the_mean() -> None:
    x = tokens(48)
    plan = plan_merge("todo", x, grid=(6, 8), remove=36)
    assert torch.equal(plan.merge(x), x.gather(1, plan.positions[..., None].expand(-1, -1, 3)))
    pooled = torch.nn.functional.avg_pool2d(x.mT.reshape(2, 3, 6, 8), 2).flatten(2).mT
    torch.testing.assert_close(plan.reduced_by("mean").merge(x), pooled)
    assert plan.reduced_by(None) is plan
    assert plan.placed(3).reduce == plan.repeat(2).reduce == "prune"


def test_a_factor_of_one_reduces_nothing() -> None:
    with pytest.raises(OptionError, match="todo: found factor 1; accepted 2 or more tokens per side"):
        ToDo(factor=1)


def test_more_than_the_factor_allows_is_an_error() -> None:
    with pytest.raises(PlanError, match="todo on a 5x5 grid: found 20 tokens to remove; accepted 0 to 16"):
        plan_merge("todo", tokens(25), grid=(5, 5), remove=20)
