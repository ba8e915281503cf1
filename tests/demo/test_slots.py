"""Merge maps as shapes."""

from __future__ import annotations

import re

import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from sdtm_fx.demo.slots import MergeMap, merge_map
from sdtm_fx.explaining.plan_record import SiteRecord
from sdtm_fx.methods import plan_merge


def site(assign: list[int], positions: list[int], grid: tuple[int, int]) -> SiteRecord:
    slots, tokens = torch.tensor([assign]), torch.tensor([positions])
    return SiteRecord(
        0, 0, 1, 0, None, "blocks.0", "ff", "feed_forward", "blocks.0.ff", "merged", "detail",
        grid, len(positions), slots.int(), tokens.int(),
    )  # fmt: skip


def area(drawn: MergeMap) -> int:
    return sum(int(n) for slot in drawn.slots for n in re.findall(r"h(\d+)v1", slot.path))


def grey(grid: tuple[int, int]) -> Tensor:
    return torch.full((3, 2 * grid[0], 2 * grid[1]), 0.5)


def test_a_window() -> None:
    # 2 x 4 tokens: a 2 x 2 window on the left, four tokens on their own.
    image = torch.zeros(3, 4, 8)
    image[0, :, :4] = 1.0
    image[:, :2, 2:4] = 1.0  # one of the four tokens is white
    drawn = merge_map(site([4, 4, 0, 1, 4, 4, 2, 3], [2, 3, 6, 7, 0], (2, 4)), image)
    (slot,) = drawn.slots
    assert slot.path == "M0 0h2v1h-2zM0 1h2v1h-2z"
    assert slot.size == 4
    assert slot.colour == "#ff4040"
    assert drawn.borders == "M2 0v2"
    assert drawn.links == ""
    assert not drawn.far


def test_a_slot_in_two_pieces() -> None:
    drawn = merge_map(site([0, 1, 2, 0], [0, 1, 2], (1, 4)), grey((1, 4)))
    (slot,) = drawn.slots
    assert slot.path == "M0 0h1v1h-1zM3 0h1v1h-1z"
    assert slot.colour == "#808080"
    assert drawn.borders == "M1 0v1M3 0v1"  # not between the two that are on their own
    assert drawn.links == "M3.5 0.5L0.5 0.5"
    assert not drawn.far


def test_links_over_the_whole_image_are_far() -> None:
    drawn = merge_map(site([0, 1, 2, 3, 4, 5, 6, 0], list(range(7)), (1, 8)), grey((1, 8)))
    assert drawn.far


def test_nothing_shared_draws_nothing() -> None:
    drawn = merge_map(site([0, 1, 2, 3], [0, 1, 2, 3], (2, 2)), grey((2, 2)))
    assert drawn == MergeMap((), "", "", False)


@settings(max_examples=30, deadline=None)
@given(
    st.integers(2, 7),
    st.integers(2, 7),
    st.sampled_from(["ssm", "tome", "local_match"]),
    st.integers(0, 2**16),
)
def test_every_token_that_shares_a_slot_is_drawn_once(
    height: int, width: int, method: str, seed: int
) -> None:
    tokens = torch.randn(1, height * width, 8, generator=torch.Generator().manual_seed(seed))
    windows = (height // 2) * (width // 2)
    plan = plan_merge(method, tokens, grid=(height, width), remove=3 * max(1, windows // 2), window=(2, 2))
    drawn = merge_map(
        site(plan.assign[0].tolist(), plan.positions[0].tolist(), (height, width)), grey((height, width))
    )
    assert area(drawn) == int(plan.merged_mask.sum())
    assert len(drawn.slots) == int((plan.sizes > 1).sum())
    assert sum(slot.size for slot in drawn.slots) - len(drawn.slots) == plan.removed
    ends = [float(v) for line in re.findall(r"[ML]([\d.]+) ([\d.]+)", drawn.links) for v in line]
    assert all(0 < v < max(height, width) for v in ends)
