"""Baselines choose without looking: random tokens, random or unlike windows, and evenly spread cells."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.nn.functional import normalize

from sdtm_fx.hashing import hash_words
from sdtm_fx.methods import SSM, Random, TokenView, Uniform
from sdtm_fx.methods.uniform import spread_order
from sdtm_fx.similarity import window_similarity
from sdtm_fx.windows import Windows

CPU = torch.device("cpu")
SIDES = st.integers(2, 12)


def tokens(seed: int, count: int, batch: int = 2) -> Tensor:
    return torch.randn(batch, count, 8, generator=torch.Generator().manual_seed(seed))


def gone(positions: Tensor, count: int) -> Tensor:
    return torch.ones(positions.shape[0], count, dtype=torch.bool).scatter(1, positions, False)


@settings(max_examples=20, deadline=None)
@given(SIDES, SIDES, st.integers(0, 2**40), st.floats(0, 1))
def test_random_draws_who_goes_from_the_salt_alone(height: int, width: int, salt: int, part: float) -> None:
    count = height * width
    remove = int(part * (count - 1))
    x, y = tokens(1, count), tokens(2, count)
    first, other = (Random().plan(TokenView(z, (height, width), salt=salt), remove) for z in (x, y))
    assert torch.equal(first.positions, other.positions), "the content has no say"
    assert torch.equal(first.positions[0], first.positions[1]), "one draw for the batch"
    expected = hash_words(torch.arange(count), salt).argsort(stable=True)[:remove]
    assert torch.equal(gone(first.positions, count)[0].nonzero()[:, 0], expected.sort().values)


@settings(max_examples=15, deadline=None)
@given(SIDES, SIDES, st.integers(0, 99))
def test_random_joins_the_most_similar_token_that_stays(height: int, width: int, seed: int) -> None:
    count = height * width
    x = tokens(seed, count)
    plan = Random().plan(TokenView(x, (height, width), salt=seed), count // 2)
    unit = normalize(x.double(), dim=-1)
    parent = plan.positions.gather(1, plan.assign)
    for sample in range(2):
        away, stays = gone(plan.positions, count)[sample], plan.positions[sample]
        best = (unit[sample][away] @ unit[sample][stays].T).argmax(dim=1)
        assert torch.equal(parent[sample][away], stays[best])
        assert torch.equal(parent[sample][stays], stays)


def test_every_token_goes_about_as_often() -> None:
    x, times = tokens(3, 64, batch=1), torch.zeros(64)
    for salt in range(400):
        times += gone(Random().plan(TokenView(x, (8, 8), salt=salt), 32).positions, 64)[0]
    assert times.sum() == 400 * 32
    assert times.min() > 150  # 200 expected, a standard deviation of 10
    assert times.max() < 250


@settings(max_examples=20, deadline=None)
@given(SIDES, SIDES, st.sampled_from([(2, 2), (1, 2), (3, 2)]), st.floats(0, 1))
def test_uniform_merges_cells_by_their_place_alone(
    height: int, width: int, window: tuple[int, int], part: float
) -> None:
    cells, method = Windows((height, width), window), Uniform(window=window)
    merged = int(part * cells.count)
    x, y = tokens(4, height * width), tokens(5, height * width)
    plan = method.plan(TokenView(x, (height, width), salt=1), merged * method.quantum())
    other = method.plan(TokenView(y, (height, width), salt=2), merged * method.quantum())
    assert torch.equal(plan.assign, other.assign)
    whole = cells.split(plan.merged_mask[:1].float())[0] if cells.count else torch.zeros(0, cells.size)
    assert whole.sum() == merged * cells.size
    assert set(whole.mean(dim=1).tolist()) <= {0.0, 1.0}, "a cell is merged whole or not at all"
    parent = plan.positions.gather(1, plan.assign)[0]
    table = cells.tokens(CPU)[spread_order(cells, CPU)[:merged]]
    assert torch.equal(parent[table], table[:, :1].expand(-1, cells.size)), "into its top-left token"


@pytest.mark.parametrize("grid", [(32, 32), (64, 64), (20, 36)])
@pytest.mark.parametrize("part", [0.1, 0.25, 0.5, 0.8])
def test_uniform_spreads_the_merged_cells(grid: tuple[int, int], part: float) -> None:
    cells = Windows(grid, (2, 2))
    merged = round(part * cells.count)
    chosen = torch.zeros(cells.count)
    chosen[spread_order(cells, CPU)[:merged]] = 1
    table = chosen.view(cells.rows, cells.columns)
    boxes = table.unfold(0, 5, 1).unfold(1, 5, 1).sum(dim=(2, 3))
    assert (boxes - 25 * merged / cells.count).abs().max() <= 3.5, "every 5 x 5 cells hold about as many"
    drawn = torch.zeros(cells.count)
    drawn[torch.randperm(cells.count, generator=torch.Generator().manual_seed(0))[:merged]] = 1
    random = drawn.view(cells.rows, cells.columns).unfold(0, 5, 1).unfold(1, 5, 1).sum(dim=(2, 3))
    assert boxes.var() < 0.5 * random.var()


def test_uniform_at_the_full_ratio_is_mean_pooling() -> None:
    x = tokens(6, 48)
    plan = Uniform().plan(TokenView(x, (6, 8)), 36)
    pooled = torch.nn.functional.avg_pool2d(x.mT.reshape(2, 8, 6, 8), 2)
    back = torch.nn.functional.interpolate(pooled, scale_factor=2)
    torch.testing.assert_close(plan.unmerge(plan.merge(x)), back.flatten(2).mT)


def test_windows_can_be_taken_in_the_opposite_order() -> None:
    x, windows = tokens(7, 64), Windows((8, 8), (2, 2))
    view = TokenView(x, (8, 8))
    alike = window_similarity(x, windows)
    plan = SSM(select="dissimilar").plan(view, 5 * 3)
    least = (-alike).topk(5, dim=1).indices.sort(dim=1).values
    assert torch.equal(plan.positions[:, -5:], windows.tokens(CPU)[least][..., 0])
    torch.testing.assert_close(SSM(select="dissimilar").score(view), -SSM().score(view))


def test_random_windows_come_from_the_salt_and_ages_still_count() -> None:
    x, ages = tokens(8, 64), torch.zeros(2, 64, dtype=torch.int32)
    method, view = SSM(select="random"), TokenView(x, (8, 8), salt=5)
    score = method.score(view)
    assert torch.equal(score, method.score(TokenView(-x[[1, 0]], (8, 8), salt=torch.tensor(5))))
    assert torch.equal(score[0], score[1])
    assert not torch.equal(score, method.score(TokenView(x, (8, 8), salt=6)))
    assert 0 <= score.min() < score.max() < 1
    ages[:, Windows((8, 8), (2, 2)).tokens(CPU)[3]] = 4
    aged = method.score(TokenView(x, (8, 8), ages=ages, salt=5))
    assert (aged < score).nonzero()[:, 1].tolist() == [3, 3]
