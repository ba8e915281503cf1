"""Each method chooses what its definition says, against slow forms written out in full."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor
from torch.nn.functional import normalize

from sdtm_fx.cost.planning import plan_macs
from sdtm_fx.methods import FIDM, IDM, SSM, LocalMatch, TokenView, ToMe
from sdtm_fx.methods.matching import choose_targets
from sdtm_fx.similarity import window_similarity
from sdtm_fx.windows import Windows

CPU = torch.device("cpu")


def tokens(seed: int, count: int, batch: int = 2, width: int = 8) -> Tensor:
    return torch.randn(batch, count, width, generator=torch.Generator().manual_seed(seed))


def cosines(x: Tensor) -> Tensor:
    unit = normalize(x.double(), dim=-1)
    return unit @ unit.mT


@pytest.mark.parametrize(("grid", "window"), [((6, 8), (2, 2)), ((7, 9), (2, 3)), ((5, 6), (1, 2))])
@pytest.mark.parametrize("include_diagonal", [False, True])
def test_window_similarity_is_the_mean_of_all_pairs(
    grid: tuple[int, int], window: tuple[int, int], include_diagonal: bool
) -> None:
    x, windows = tokens(0, grid[0] * grid[1]), Windows(grid, window)
    x[0, 3] = 0  # a zero vector has cosine 0 to every token
    table = windows.tokens(CPU)
    pairs = cosines(x)[:, table[:, :, None], table[:, None, :]]
    size = windows.size
    expected = pairs.mean(dim=(2, 3))
    if not include_diagonal:
        own = pairs.diagonal(dim1=2, dim2=3).sum(dim=2)
        expected = (pairs.sum(dim=(2, 3)) - own) / (size * (size - 1))
    found = window_similarity(x, windows, include_diagonal=include_diagonal)
    torch.testing.assert_close(found.double(), expected, atol=1e-5, rtol=1e-5)


def test_ssm_merges_the_windows_of_highest_score_in_raster_order() -> None:
    x, windows = tokens(1, 63), Windows((7, 9), (2, 2))
    plan = SSM().plan(TokenView(x, (7, 9)), 5 * 3)
    chosen = window_similarity(x, windows).topk(5, dim=1).indices.sort(dim=1).values
    assert plan.uniform == (63 - 20, 4)
    assert torch.equal(plan.positions[:, -5:], windows.tokens(CPU)[chosen][..., 0])
    assert torch.equal(plan.order[:, -20:].view(2, 5, 4), windows.tokens(CPU)[chosen])
    left = windows.leftovers(CPU)
    assert torch.equal(plan.order[:, 43 - len(left) : 43], left.expand(2, -1))


def test_ssm_gives_ties_to_the_first_window() -> None:
    plan = SSM().plan(TokenView(torch.ones(1, 64, 4), (8, 8)), 4 * 3)
    assert plan.positions[0, -4:].tolist() == [0, 2, 4, 6]


def test_the_sign_of_the_age_decides_whether_old_windows_stay_merged() -> None:
    x, old = torch.ones(1, 64, 4), torch.zeros(1, 64, dtype=torch.int32)
    windows = Windows((8, 8), (2, 2)).tokens(CPU)
    old[0, windows[5]] = 3
    view = TokenView(x, (8, 8), ages=old)
    assert SSM(age_sign=1).plan(view, 3).positions[0, -1] == windows[5, 0]
    assert not SSM(age_sign=-1).plan(view, 15 * 3).merged_mask[0, windows[5]].any()


def test_ssm_counts_what_a_threshold_would_merge() -> None:
    x = tokens(2, 64)
    score = SSM().score(TokenView(x, (8, 8)))
    found = SSM().count_above(TokenView(x, (8, 8)), 0.1)
    assert found.tolist() == [3 * int((row >= 0.1).sum()) for row in score]
    assert found.dtype == torch.int64


def naive_match(x: Tensor, targets: Tensor, sources: Tensor, allowed: Tensor, remove: int) -> Tensor:
    """Parents of one sample: the `remove` sources most similar to an allowed target join it."""
    table = cosines(x[None])[0][sources][:, targets].masked_fill(~allowed, -9)
    best, place = table.max(dim=1)
    parent = torch.arange(len(x))
    for source in best.topk(remove).indices:
        parent[sources[source]] = targets[place[source]]
    return parent


@pytest.mark.parametrize("radius", [0, 1, 2, None])
@pytest.mark.parametrize("grid", [(8, 8), (7, 9), (6, 64), (5, 75)])  # the last: a tile that sticks out
def test_matching_joins_the_most_similar_target_in_reach(radius: int | None, grid: tuple[int, int]) -> None:
    x, windows, remove = tokens(3, grid[0] * grid[1]), Windows(grid, (2, 2)), 20
    ages = torch.randint(0, 4, x.shape[:2], generator=torch.Generator().manual_seed(1), dtype=torch.int32)
    method = FIDM() if radius is None else LocalMatch(radius=radius)
    plan = method.plan(TokenView(x, grid, ages), remove)
    table = windows.tokens(CPU)
    row, column = (
        torch.arange(windows.count) // windows.columns,
        torch.arange(windows.count) % windows.columns,
    )
    for sample in range(2):
        place = ages[sample][table].argmax(dim=1)
        targets = table.gather(1, place[:, None])[:, 0]
        sources = table[torch.ones_like(table, dtype=torch.bool).scatter(1, place[:, None], False)]
        own = torch.arange(windows.count).repeat_interleave(3)
        far = torch.maximum((row[own][:, None] - row).abs(), (column[own][:, None] - column).abs())
        allowed = far <= (99 if radius is None else radius)
        parent = naive_match(x[sample], targets, sources, allowed, remove)
        assert torch.equal(plan.positions[sample][plan.assign[sample]], parent)


def test_a_radius_over_the_whole_grid_is_global_matching() -> None:
    x = tokens(4, 80)
    near, everywhere = LocalMatch(radius=9), FIDM()
    view = TokenView(x, (8, 10))
    assert torch.equal(near.plan(view, 33).assign, everywhere.plan(view, 33).assign)


def test_local_matching_is_linear_in_the_tokens() -> None:
    small, large = (
        plan_macs(LocalMatch(), (side, side), 0, 64, side * side // 2).total for side in (32, 128)
    )
    assert 15 < large / small < 20  # 16 times the tokens


def test_local_match_lets_ages_decide_between_equals() -> None:
    ages = torch.zeros(1, 16, dtype=torch.int32)
    ages[0, [1, 4]] = 2  # two tokens of the first window that do not absorb
    view = TokenView(torch.ones(1, 16, 4), (4, 4), ages=ages)
    sticky = LocalMatch(target="first", age_weight=0.1, age_sign=1).plan(view, 2)
    fair = LocalMatch(target="first", age_weight=0.1, age_sign=-1).plan(view, 10)
    assert sticky.removed == 2
    assert sticky.merged_mask[0, [1, 4]].all()
    assert fair.assign[0, 1] != fair.assign[0, 0]
    assert not fair.merged_mask[0, [1, 4]].any()


def test_tome_draws_one_target_per_cell_from_the_salt() -> None:
    x = tokens(5, 16 * 16)
    seen = set()
    for salt in (0, 1, 2):
        plan = ToMe().plan(TokenView(x, (16, 16), salt=salt), 192)
        assert torch.equal(plan.positions[0], plan.positions[1])
        assert torch.equal(
            plan.positions, ToMe().plan(TokenView(x, (16, 16), salt=torch.tensor(salt)), 192).positions
        )
        cells = Windows((16, 16), (2, 2)).split(torch.zeros(1, 256).index_fill(1, plan.positions[0], 1))
        assert (cells.sum(dim=2) == 1).all()
        seen.add(tuple(plan.positions[0].tolist()))
    assert len(seen) == 3


def test_tome_may_remove_tokens_outside_whole_cells() -> None:
    plan = ToMe().plan(TokenView(tokens(6, 35), (5, 7)), ToMe().capacity((5, 7)))
    assert plan.kept == 6
    assert plan.merged_mask[:, Windows((5, 7), (2, 2)).leftovers(CPU)].all()


def test_idm_removes_the_least_attended_and_joins_the_most_similar_keeper() -> None:
    x, attention = tokens(7, 48), torch.rand(2, 48, generator=torch.Generator().manual_seed(3))
    plan = IDM().plan(TokenView(x, (6, 8), attention=attention), 20)
    for sample in range(2):
        ranked = attention[sample].argsort()
        gone, keepers = ranked[:20], ranked[20:].sort().values
        parent = torch.arange(48)
        parent[gone] = keepers[cosines(x)[sample][gone][:, keepers].argmax(dim=1)]
        assert torch.equal(plan.positions[sample][plan.assign[sample]], parent)


@pytest.mark.parametrize("radius", [None, 1])
@pytest.mark.parametrize("rank", ["inattentive", "similar", "both"])
def test_idm_with_windows_keeps_the_most_attended_token_of_each(radius: int | None, rank: str) -> None:
    x, attention = tokens(8, 48), torch.rand(2, 48, generator=torch.Generator().manual_seed(4))
    method = IDM(window=(2, 2), radius=radius, rank=rank)  # type: ignore[arg-type]
    plan = method.plan(TokenView(x, (6, 8), attention=attention), 36)
    table = Windows((6, 8), (2, 2)).tokens(CPU)
    best = table.gather(1, attention[:, table].argmax(dim=2).T).T
    assert torch.equal(plan.positions, best.sort(dim=1).values)
    some = method.plan(TokenView(x, (6, 8), attention=attention), 5)
    gone = torch.ones(2, 48, dtype=torch.bool).scatter(1, some.positions, False)
    score = 1 - attention / attention.amax(dim=1, keepdim=True)
    keepers = torch.zeros(2, 48, dtype=torch.bool).scatter(1, best, True)
    if rank == "inattentive":
        assert score[gone].view(2, 5).amin() >= 0
        worst = score.masked_fill(keepers, -1).topk(5, dim=1).indices.sort(dim=1).values
        assert torch.equal(gone.nonzero()[:, 1].view(2, 5), worst)
    elif radius is None:
        similar = cosines(x).masked_fill(~keepers[:, None], -9).amax(dim=2)
        order = similar if rank == "similar" else similar + score
        first = order.masked_fill(keepers, -9).topk(5, dim=1).indices.sort(dim=1).values
        assert torch.equal(gone.nonzero()[:, 1].view(2, 5), first)


def test_idm_ages_protect_or_pursue_tokens() -> None:
    ages = torch.zeros(1, 16, dtype=torch.int32)
    ages[0, 6] = 5
    view = TokenView(tokens(9, 16, batch=1), (4, 4), ages=ages, attention=torch.ones(1, 16))
    assert IDM(age_sign=1).plan(view, 1).merged_mask[0, 6]
    assert 6 not in IDM(age_sign=1).plan(view, 1).positions[0]
    assert 6 in IDM(age_sign=-1).plan(view, 15).positions[0]


def test_the_target_may_be_the_youngest_token() -> None:
    ages, windows = torch.tensor([[2, 1, 0, 3, 4, 4, 1, 0]], dtype=torch.int32), Windows((2, 4), (2, 2))
    view = TokenView(tokens(10, 8, batch=1), (2, 4), ages=ages)  # windows 2 1 4 4 and 0 3 1 0
    assert choose_targets(view, windows, "oldest").tolist() == [[2, 1]]
    assert choose_targets(view, windows, "youngest").tolist() == [[1, 0]]
    fresh = TokenView(view.metric, (2, 4))
    assert choose_targets(fresh, windows, "youngest").tolist() == [[0, 0]]
