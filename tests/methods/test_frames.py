"""Methods and windows on grids with frames: nothing straddles two frames unless a window says so."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from sdtm_fx.errors import PlanError
from sdtm_fx.grids import TokenGrid, coarser, join_blocks, outside_blocks, split_blocks, tokens_on
from sdtm_fx.methods import (
    FIDM,
    IDM,
    SSM,
    LocalMatch,
    Method,
    SiTo,
    TokenCache,
    TokenView,
    ToMA,
    ToMe,
    Uniform,
)
from sdtm_fx.methods.importance import Importance
from sdtm_fx.methods.neighbours import best_neighbour
from sdtm_fx.methods.todo import ToDo
from sdtm_fx.methods.token_cache import best_of_windows
from sdtm_fx.plan import MergePlan
from sdtm_fx.regions import stripes, tiles
from sdtm_fx.similarity import window_similarity
from sdtm_fx.windows import Windows
from tests.methods.test_methods import ALL, MERGING, half_of, make_view, same_slots

CPU = torch.device("cpu")
FRAMED: list[Method] = [
    SSM(window=(2, 2, 2)),
    SSM(window=(3, 1, 2), include_diagonal=True),
    FIDM(window=(2, 2, 1)),
    Uniform(window=(2, 2, 2)),
    ToMe(window=(2, 1, 2)),
    SiTo(window=(2, 2, 2)),
    LocalMatch(window=(2, 2, 2)),
    LocalMatch(window=(3, 1, 2), radius=2, target="random"),
    IDM(window=(2, 2, 2), radius=1, rank="both"),
    TokenCache(window=(2, 2, 2)),
    ToMA(tile=(2, 2, 2)),
]
"""Methods whose windows have frames."""
LOCAL: list[Method] = [
    SSM(),
    Uniform(window=(1, 3)),
    LocalMatch(radius=2),
    IDM(window=(2, 2), radius=1),
    ToDo(),
    ToDo(factor=3),
]
"""Methods whose slots lie in one frame; others match tokens all over the grid, as published."""
VIDEOS = st.one_of(
    st.tuples(st.integers(1, 5), st.integers(1, 6), st.integers(1, 6)),
    st.sampled_from([(3, 5, 7), (5, 4, 10), (2, 8, 6), (7, 3, 19)]),
)
EDGES = st.one_of(
    st.tuples(st.integers(1, 3), st.integers(1, 3)),
    st.tuples(st.integers(1, 3), st.integers(1, 3), st.integers(1, 3)),
)


@settings(max_examples=60, deadline=None)
@given(grid=VIDEOS, window=EDGES)
def test_windows_and_leftovers_hold_every_token_once(grid: TokenGrid, window: TokenGrid) -> None:
    windows = Windows(grid, window)
    tokens, left = windows.tokens(CPU), windows.leftovers(CPU)
    assert tokens.shape == (windows.count, windows.size)
    assert sorted([*tokens.flatten().tolist(), *left.tolist()]) == list(range(tokens_on(grid)))
    assert left.tolist() == sorted(left.tolist())
    own = (1, *window) if len(window) == 2 else window
    for row in tokens.tolist():
        places = [(t // (grid[1] * grid[2]), t // grid[2] % grid[1], t % grid[2]) for t in row]
        assert tuple(max(axis) - min(axis) + 1 for axis in zip(*places, strict=True)) == own
        assert row == sorted(row)
    index = torch.arange(windows.count)[:, None]
    assert torch.equal(windows.token_at(index, torch.arange(windows.size)), tokens)


@settings(max_examples=40, deadline=None)
@given(grid=VIDEOS, window=EDGES)
def test_blocks_come_back_to_where_they_were(grid: TokenGrid, window: TokenGrid) -> None:
    windows, x = Windows(grid, window), torch.randn(2, tokens_on(grid), 3)
    parts = grid, windows.edges, windows.counts
    inside, rest = split_blocks(x, *parts), outside_blocks(x, grid, windows.covered)
    assert inside.shape[1] * inside.shape[2] + rest.shape[1] == tokens_on(grid)
    assert torch.equal(join_blocks(inside, rest, *parts), x)


def test_a_window_with_frames_asks_for_a_grid_with_frames() -> None:
    with pytest.raises(
        PlanError, match=r"found window 2x2x2 \(frames, height, width\) on a grid of 8x6, which has no"
    ):
        SSM(window=(2, 2, 2)).capacity((8, 6))


def test_frames_that_fill_no_window_stay_as_they_are() -> None:
    grid = (3, 4, 4)
    plan = SSM(window=(2, 2, 2)).plan(make_view(0, grid), SSM(window=(2, 2, 2)).capacity(grid))
    assert isinstance(plan, MergePlan)
    assert plan.kept == 4 + 16
    assert not plan.merged_mask[:, 32:].any(), "the last frame"
    assert plan.merged_mask[:, :32].all()


@pytest.mark.parametrize("method", FRAMED, ids=repr)
@settings(max_examples=10, deadline=None)
@given(grid=VIDEOS, seed=st.integers(0, 99), part=st.floats(0, 1))
def test_the_count_is_exact_where_windows_have_frames(
    method: Method, grid: TokenGrid, seed: int, part: float
) -> None:
    tokens, most, step = tokens_on(grid), method.capacity(grid), method.quantum()
    assert 0 <= most < tokens
    remove = int(part * most) // step * step
    view = make_view(seed, grid)
    plan, x = method.plan(view, remove), view.metric
    assert (plan.tokens, plan.kept, plan.positions.shape) == (tokens, tokens - remove, (2, tokens - remove))
    assert plan.unmerge(plan.merge(x)).shape == x.shape
    if isinstance(plan, MergePlan):
        assert torch.equal(plan.order.sort(dim=1).values, torch.arange(tokens).expand(2, -1))
        assert (plan.sizes.sum(dim=1) == tokens).all()


@pytest.mark.parametrize("method", LOCAL, ids=repr)
@settings(max_examples=10, deadline=None)
@given(grid=VIDEOS, seed=st.integers(0, 99))
def test_no_slot_straddles_two_frames(method: Method, grid: TokenGrid, seed: int) -> None:
    plan = method.plan(make_view(seed, grid), method.capacity(grid) // method.quantum() * method.quantum())
    assert isinstance(plan, MergePlan)
    frame = torch.arange(tokens_on(grid)) // (grid[1] * grid[2])
    represented = plan.positions.gather(1, plan.assign) // (grid[1] * grid[2])
    assert torch.equal(represented, frame.expand(2, -1))


@pytest.mark.parametrize("method", ALL, ids=repr)
def test_one_frame_is_planned_as_an_image(method: Method) -> None:
    flat, framed = make_view(3, (6, 9)), make_view(3, (1, 6, 9))
    remove = half_of(method, (6, 9))
    assert remove == half_of(method, (1, 6, 9))
    assert same_slots(method.plan(flat, remove), method.plan(framed, remove))


@pytest.mark.parametrize(
    "method", [m for m in MERGING if isinstance(m, ToDo | SSM) and not isinstance(m, LocalMatch)]
)
def test_all_that_goes_goes_alike_in_every_frame(method: Method) -> None:
    """At the full ratio a video is planned as its frames are."""
    view, grid = make_view(5, (3, 5, 6)), (5, 6)
    plan = method.plan(view, method.capacity((3, 5, 6)))
    for frame in range(3):
        own = slice(frame * 30, (frame + 1) * 30)
        one = TokenView(view.metric[:, own], grid, salt=view.salt)
        alone = method.plan(one, method.capacity(grid))
        assert isinstance(plan, MergePlan)
        assert isinstance(alone, MergePlan)
        assert torch.equal(plan.merged_mask[:, own], alone.merged_mask)


@settings(max_examples=25, deadline=None)
@given(grid=VIDEOS, window=EDGES, radius=st.integers(0, 2), seed=st.integers(0, 99))
def test_neighbours_are_those_of_a_plain_search_in_the_same_frames(
    grid: TokenGrid, window: TokenGrid, radius: int, seed: int
) -> None:
    windows = Windows(grid, window)
    if not windows.count:
        return
    draw = torch.Generator().manual_seed(seed)
    x = torch.randn(1, tokens_on(grid), 5, generator=draw)
    targets = windows.tokens(CPU)[:, 0][None]
    cosine, token = best_neighbour(x, windows, targets, radius)
    unit = torch.nn.functional.normalize(x[0], dim=1)
    _, rows, columns = windows.counts
    for number, members in enumerate(windows.tokens(CPU).tolist()):
        layer, row, column = number // (rows * columns), number // columns % rows, number % columns
        near = [
            (layer * rows + r) * columns + c
            for r in range(max(0, row - radius), min(rows, row + radius + 1))
            for c in range(max(0, column - radius), min(columns, column + radius + 1))
        ]
        goals = targets[0, near]
        for member in members:
            best = (unit[goals] @ unit[member]).max()
            assert torch.isclose(cosine[0, member], best, atol=1e-5)
            assert token[0, member] in goals


@settings(max_examples=20, deadline=None)
@given(grid=VIDEOS, window=EDGES, seed=st.integers(0, 99))
def test_window_similarity_is_the_mean_cosine_of_pairs(grid: TokenGrid, window: TokenGrid, seed: int) -> None:
    windows = Windows(grid, window)
    if windows.size < 2 or not windows.count:
        return
    x = torch.randn(1, tokens_on(grid), 4, generator=torch.Generator().manual_seed(seed))
    unit = torch.nn.functional.normalize(x[0], dim=1)[windows.tokens(CPU)]
    table = unit @ unit.mT
    pairs = table.sum(dim=(1, 2)) - table.diagonal(dim1=1, dim2=2).sum(dim=1)
    mean = pairs / (windows.size * (windows.size - 1))
    assert torch.allclose(window_similarity(x, windows)[0], mean, atol=1e-5)


def test_the_best_of_windows_at_odd_edges() -> None:
    score = torch.arange(3 * 3 * 3, dtype=torch.float32)[None]
    best = best_of_windows(score, (3, 3, 3), (2, 2, 2)).view(3, 3, 3)
    assert best.sum() == 8, "2 x 2 x 2 windows, seven of them smaller"
    assert best[(1, 2, 1), (1, 2, 2), (1, 2, 1)].all()
    assert best_of_windows(score, (3, 3, 3), (2, 2)).sum() == 3 * 4


def test_tiles_and_stripes_do_not_straddle() -> None:
    inside = tiles((2, 3, 4), (2, 2)).numbers(CPU)
    assert inside.tolist()[:3] == [[0, 1, 4, 5], [2, 3, 6, 7], [12, 13, 16, 17]]
    assert tiles((2, 3, 4), (2, 2, 2)).numbers(CPU).tolist()[0] == [0, 1, 4, 5, 12, 13, 16, 17]
    assert [row[0] // 12 for row in stripes((2, 3, 4), 2).numbers(CPU).tolist()] == [0, 0, 1, 1]
    assert stripes((2, 3, 4), 5).outside == 4


def test_the_nearest_place_counts_frames_as_rows() -> None:
    view = make_view(0, (3, 2, 2))
    plan = Importance(metric="grid").plan(view, 6)
    assert plan.kept == 6


def test_a_coarser_grid_keeps_its_frames() -> None:
    assert coarser((5, 7, 6), 2) == (5, 4, 3)
    assert coarser((7, 6), 2) == (4, 3)
