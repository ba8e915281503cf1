"""Windows: every covered token is in one window, and arithmetic agrees with the tables."""

from __future__ import annotations

import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from sdtm_fx.windows import Windows

CPU = torch.device("cpu")
SIDES = st.tuples(st.integers(1, 12), st.integers(1, 12))
WINDOWS = st.tuples(st.integers(1, 4), st.integers(1, 4))


@settings(max_examples=60, deadline=None)
@given(grid=SIDES, window=WINDOWS)
def test_windows_and_leftovers_hold_every_token_once(grid: tuple[int, int], window: tuple[int, int]) -> None:
    windows = Windows(grid, window)
    tokens, left = windows.tokens(CPU), windows.leftovers(CPU)
    assert tokens.shape == (windows.count, windows.size)
    assert sorted([*tokens.flatten().tolist(), *left.tolist()]) == list(range(grid[0] * grid[1]))
    assert left.tolist() == sorted(left.tolist())
    for row in tokens.tolist():
        down, right = [t // grid[1] for t in row], [t % grid[1] for t in row]
        assert (max(down) - min(down) + 1, max(right) - min(right) + 1) == window
        assert row == sorted(row)


@settings(max_examples=40, deadline=None)
@given(grid=SIDES, window=WINDOWS)
def test_arithmetic_agrees_with_the_table(grid: tuple[int, int], window: tuple[int, int]) -> None:
    windows = Windows(grid, window)
    index = torch.arange(windows.count)[:, None]
    assert torch.equal(windows.token_at(index, torch.arange(windows.size)), windows.tokens(CPU))
    values = torch.randn(2, grid[0] * grid[1])
    assert torch.equal(windows.split(values), values[:, windows.tokens(CPU)])


def test_a_row_off_the_grid_is_replaced_by_the_row_itself() -> None:
    windows = Windows((6, 4), (2, 2))
    near = windows.nearby_row(torch.arange(3)[:, None], torch.arange(-1, 2))
    assert near.tolist() == [[0, 0, 1], [0, 1, 2], [1, 2, 2]]
