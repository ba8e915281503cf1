"""Regions of a grid and the slots of uneven ones: there and back, and nothing lost."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from sdtm_fx.regions import Regions, stripes, tiles, whole_grid
from sdtm_fx.short_rows import ShortRows
from sdtm_fx.windows import Windows

CPU = torch.device("cpu")
SIDES = st.tuples(st.integers(1, 9), st.integers(1, 9))


@st.composite
def some_regions(draw: st.DrawFn) -> Regions:
    grid, kind = draw(SIDES), draw(st.sampled_from(["global", "tile", "stripe"]))
    if kind == "global":
        return whole_grid(grid)
    return tiles(grid, draw(SIDES)) if kind == "tile" else stripes(grid, draw(st.integers(1, 12)))


@settings(max_examples=80, deadline=None)
@given(regions=some_regions(), joined=st.booleans())
def test_values_go_to_their_regions_and_come_back(regions: Regions, joined: bool) -> None:
    regions = regions.joined() if joined else regions
    x = torch.randn(2, regions.tokens, 3)
    inside, rest = regions.split(x), regions.rest(x)
    assert inside.shape == (2, regions.number, regions.size, 3)
    assert rest.shape == (2, regions.outside, 3)
    assert torch.equal(regions.join(inside, rest), x)
    tokens = torch.arange(regions.tokens)[None]
    everything = [*regions.numbers(CPU).flatten().tolist(), *regions.rest(tokens)[0].tolist()]
    assert sorted(everything) == list(range(regions.tokens))


@settings(max_examples=40, deadline=None)
@given(grid=SIDES, tile=SIDES)
def test_tiles_are_windows(grid: tuple[int, int], tile: tuple[int, int]) -> None:
    regions, windows = tiles(grid, tile), Windows(grid, tile)
    assert torch.equal(regions.numbers(CPU), windows.tokens(CPU))
    assert torch.equal(regions.rest(torch.arange(regions.tokens)[None])[0], windows.leftovers(CPU))


def test_stripes_are_whole_rows_where_they_can_be() -> None:
    assert stripes((8, 6), 4).numbers(CPU).tolist() == torch.arange(48).view(4, 12).tolist()
    uneven = stripes((7, 9), 4)
    assert (uneven.number, uneven.size, uneven.outside) == (4, 15, 3)
    assert stripes((2, 2), 5).number == 0


@pytest.mark.parametrize("regions", [whole_grid((6, 8)), stripes((6, 8), 3), stripes((7, 9), 4)], ids=str)
def test_the_whole_grid_and_stripes_move_nothing(regions: Regions) -> None:
    x = torch.randn(2, regions.tokens, 3)
    assert regions.split(x).untyped_storage().data_ptr() == x.untyped_storage().data_ptr()


@settings(max_examples=60, deadline=None)
@given(regions=st.integers(1, 9), size=st.integers(1, 9), part=st.floats(0, 1))
def test_any_number_of_slots_is_spread_evenly(regions: int, size: int, part: float) -> None:
    remove = int(part * regions * (size - 1))
    rows = ShortRows.removing(remove, regions, size)
    assert rows.number == regions * size - remove
    there = ~rows.missing(CPU)
    counts = there.sum(dim=1)
    assert int(counts.sum()) == rows.number
    assert int(counts.min()) >= 1
    assert int(counts.max() - counts.min()) <= 1
    short = (counts < rows.most).float().cumsum(0)
    ideal = torch.arange(1, regions + 1) * rows.short / regions
    assert (short - ideal).abs().max() < 1
    values = torch.randn(2, regions, rows.most, 3)
    packed = rows.pack(values)
    assert torch.equal(packed, values[:, there])
    assert torch.equal(rows.unpack(packed)[:, there], values[:, there])
    assert torch.equal(rows.places(CPU)[there], torch.arange(rows.number))
