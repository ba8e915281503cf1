"""ToFu, CA-ToMe, SiTo and importance-based merging against their formulas, token by token."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.nn.functional import normalize

from sdtm_fx.hashing import hash_words
from sdtm_fx.methods import CAToMe, Importance, SiTo, ToFu, TokenView, ToMe
from sdtm_fx.plan import MergePlan

GRIDS = st.tuples(st.integers(2, 7), st.integers(2, 7))


def tokens(seed: int, count: int, batch: int = 2) -> Tensor:
    return torch.randn(batch, count, 8, generator=torch.Generator().manual_seed(seed))


def cells(grid: tuple[int, int]) -> list[list[int]]:
    """The tokens of every 2x2 cell."""
    height, width = grid
    return [
        [row * width + column for row in (top, top + 1) for column in (left, left + 1)]
        for top in range(0, height - 1, 2)
        for left in range(0, width - 1, 2)
    ]


def parents(plan: MergePlan) -> Tensor:
    return plan.positions.gather(1, plan.assign)


# -- tofu ------------------------------------------------------------------------------------------


@settings(max_examples=10, deadline=None)
@given(grid=GRIDS, seed=st.integers(0, 99))
def test_tofu_matches_as_tome_and_differs_in_what_a_slot_holds(grid: tuple[int, int], seed: int) -> None:
    x = tokens(seed, grid[0] * grid[1])
    view, remove = TokenView(x, grid, salt=seed), ToMe().capacity(grid) // 2
    tome, tofu = ToMe().plan(view, remove), ToFu().plan(view, remove)
    assert torch.equal(tome.assign, tofu.assign)
    assert (tome.reduce, tofu.reduce, ToFu(reduce="prune").plan(view, remove).reduce) == (
        "mean",
        "mlerp",
        "prune",
    )
    longest = torch.zeros(2, tofu.kept).scatter_reduce(1, tofu.assign, x.norm(dim=2), "amax")
    torch.testing.assert_close(tofu.merge(x).norm(dim=2), longest)


# -- ca_tome ---------------------------------------------------------------------------------------


@settings(max_examples=15, deadline=None)
@given(grid=GRIDS, seed=st.integers(0, 99), threshold=st.floats(-0.5, 0.9))
def test_ca_tome_counts_the_tokens_that_are_similar_enough(
    grid: tuple[int, int], seed: int, threshold: float
) -> None:
    x = tokens(seed, grid[0] * grid[1])
    unit = normalize(x.double(), dim=2)
    absorbing = [cell[0] for cell in cells(grid)]
    others = [i for i in range(grid[0] * grid[1]) if i not in absorbing]
    best = (unit[:, others] @ unit[:, absorbing].mT).amax(dim=2)
    count = CAToMe(random=False).count_above(TokenView(x, grid), threshold)
    assert count.tolist() == (best >= threshold).sum(dim=1).tolist()
    assert torch.equal(
        CAToMe().plan(TokenView(x, grid, salt=3), 3).assign, ToMe().plan(TokenView(x, grid, salt=3), 3).assign
    )


def test_ca_tome_counts_nothing_where_nothing_absorbs() -> None:
    assert CAToMe().count_above(TokenView(tokens(0, 9), (1, 9)), -1.0).tolist() == [0, 0]


# -- sito ------------------------------------------------------------------------------------------


@settings(max_examples=25, deadline=None)
@given(grid=GRIDS, seed=st.integers(0, 99), part=st.floats(0.1, 1))
def test_sito_prunes_and_recovers_as_published(grid: tuple[int, int], seed: int, part: float) -> None:
    count = grid[0] * grid[1]
    x, method = tokens(seed, count), SiTo(noise_alpha=0.0)
    remove = int(part * method.capacity(grid))
    plan = method.plan(TokenView(x, grid, salt=seed), remove)
    assert plan.reduce == "prune" or remove == 0
    cosine = normalize(x.double(), dim=2) @ normalize(x.double(), dim=2).mT
    for row in range(2):
        total = cosine[row].sum(dim=1)
        bases = [max(cell, key=lambda i: float(total[i])) for cell in cells(grid)]
        others = [i for i in range(count) if i not in bases]
        by_likeness = sorted(others, key=lambda i: -float(cosine[row, i, bases].max()))
        gone, stays = by_likeness[:remove], [*by_likeness[remove:], *bases]
        found = parents(plan)[row].tolist()
        assert {i for i in range(count) if found[i] != i} == set(gone)
        assert [found[i] for i in gone] == [max(stays, key=lambda j: float(cosine[row, i, j])) for i in gone]
    merged = plan.merge(x)
    assert torch.equal(merged, x.gather(1, plan.positions[..., None].expand(-1, -1, 8))), (
        "nothing is averaged"
    )


def test_the_noise_of_sito_breaks_ties_and_has_a_variance_of_one() -> None:
    same = torch.ones(1, 4096, 4)
    assert float(SiTo().score(TokenView(same, (64, 64))).std()) == pytest.approx(0.1, rel=0.05)
    noise = SiTo(sim_beta=0.0, noise_alpha=1.0).score(TokenView(same, (64, 64), salt=7))
    assert float(noise.mean()) == pytest.approx(0.0, abs=0.05)
    assert float(noise.std()) == pytest.approx(1.0, rel=0.05)
    places = {
        int(cell[0]) % 2 + 2 * (int(cell[0]) // 8 % 2)
        for cell in SiTo().plan(TokenView(same[:, :64], (8, 8), salt=1), 48).positions[0][:, None]
    }
    assert len(places) == 4, "not the same corner of every cell"
    other = SiTo(sim_beta=0.0).score(TokenView(same, (64, 64), salt=8))
    assert not torch.equal(noise, other)


# -- importance ------------------------------------------------------------------------------------


def drawn(importance: Tensor, inside: int, absorbing: int, salt: int) -> list[int]:
    """The tokens that absorb: those of the pool with the smallest words."""
    pool = importance.argsort(descending=True, stable=True)[:inside]
    words = hash_words(torch.arange(len(importance)), salt)
    return sorted(pool.tolist(), key=lambda i: int(words[i]))[:absorbing]


@pytest.mark.parametrize("pool", [1.0, 1.4])
@settings(max_examples=25, deadline=None)
@given(grid=GRIDS, seed=st.integers(0, 99), part=st.floats(0.1, 1))
def test_importance_by_cosine(pool: float, grid: tuple[int, int], seed: int, part: float) -> None:
    count = grid[0] * grid[1]
    x, method = tokens(seed, count), Importance(pool=pool)
    importance = torch.rand(2, count, generator=torch.Generator().manual_seed(seed))
    remove = int(part * method.capacity(grid))
    plan = method.plan(TokenView(x, grid, salt=seed, importance=importance), remove)
    cosine = normalize(x.double(), dim=2) @ normalize(x.double(), dim=2).mT
    inside, absorbing = min(int((count - remove) * pool), count), max(1, count // 4)
    if remove == 0:
        return
    for row in range(2):
        targets = drawn(importance[row], inside, absorbing, seed)
        ranked = importance[row].argsort(descending=True).tolist()
        outside = set(ranked[inside:])
        others = [i for i in range(count) if i not in targets]
        first = sorted(others, key=lambda i: (i not in outside, -float(cosine[row, i, targets].max())))
        found = parents(plan)[row].tolist()
        gone = {i for i in range(count) if found[i] != i}
        assert gone == set(first[:remove])
        assert outside <= gone or len(outside) > remove
        for i in gone:
            assert found[i] == max(targets, key=lambda j: float(cosine[row, i, j]))


@settings(max_examples=25, deadline=None)
@given(grid=GRIDS, seed=st.integers(0, 99), part=st.floats(0.1, 1))
def test_importance_by_nearness_compares_no_token(grid: tuple[int, int], seed: int, part: float) -> None:
    count, method = grid[0] * grid[1], Importance(metric="grid")
    importance = torch.rand(1, count, generator=torch.Generator().manual_seed(seed))
    remove = int(part * method.capacity(grid))
    plans = [
        method.plan(TokenView(tokens(s, count, 1), grid, salt=seed, importance=importance), remove)
        for s in (1, 2)
    ]
    assert torch.equal(plans[0].assign, plans[1].assign)
    if remove == 0:
        return
    inside, absorbing = count - remove, max(1, count // 4)
    targets = drawn(importance[0], inside, absorbing, seed)
    found = parents(plans[0])[0].tolist()

    def apart(i: int, j: int) -> int:
        return (i // grid[1] - j // grid[1]) ** 2 + (i % grid[1] - j % grid[1]) ** 2

    gone = {i for i in range(count) if found[i] != i}
    assert gone == set(importance[0].argsort(descending=True).tolist()[inside:]), (
        "with pool 1, all unimportant ones"
    )
    assert all(apart(i, found[i]) == min(apart(i, j) for j in targets) for i in gone)


def test_ties_on_the_grid_do_not_favour_the_top_of_the_image() -> None:
    """All tokens as important as the next: most have a neighbour that absorbs, and go by hash."""
    importance = torch.ones(1, 32 * 32)
    view = TokenView(torch.zeros(1, 1024, 1), (32, 32), salt=5, importance=importance)
    plan = Importance(metric="grid", pool=4.0).plan(view, 300)
    gone = (parents(plan)[0] != torch.arange(1024)).view(32, 32)
    assert 100 < int(gone[:16].sum()) < 200
