"""Shapes of a merge plan on the token grid, as SVG path data: one unit is one token."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional

from sdtm_fx.explaining.plan_record import SiteRecord

Slots = NDArray[np.int64]
"""[h, w], the slot of every token."""


@dataclass(frozen=True)
class Slot:
    """A slot that several tokens share.

    Attributes:
        path: Its cells.
        colour: Mean colour of the image under it, as ``#rrggbb``.
        size: Number of tokens.
    """

    path: str
    colour: str
    size: int


@dataclass(frozen=True)
class MergeMap:
    """Who shares a slot with whom.

    Attributes:
        slots: The slots that several tokens share.
        borders: Lines between tokens of different slots, where one of them is shared.
        links: Lines from each merged token to the token that represents its slot, for slots that are no
            rectangle; of rectangles the borders say it all.
        far: Whether the links are too long to be followed by eye: matching over the whole image.
    """

    slots: tuple[Slot, ...]
    borders: str
    links: str
    far: bool


_NEAR = 3.5
"""Mean length of links, in tokens, up to which they are drawn in full."""


def merge_map(site: SiteRecord, image: Tensor, row: int = -1) -> MergeMap:
    """The map of one site over an image.

    Args:
        site: A site that merged.
        image: [3, H, W] in [0, 1].
        row: Which sample of the batch; the last one is the conditional half where guidance stacks two.
    """
    assert site.assign is not None
    assert site.positions is not None
    height, width = site.grid
    slots: Slots = site.assign[row].long().numpy().reshape(height, width)
    positions: NDArray[np.int64] = site.positions[row].long().numpy()
    sizes = np.bincount(slots.ravel(), minlength=site.kept)
    colours = _token_colours(image, (height, width))
    shared = []
    for slot in np.flatnonzero(sizes > 1):
        mask = slots == slot
        shared.append(Slot(_cells(mask), _hex(colours[mask].mean(0)), int(sizes[slot])))
    merged = sizes[slots] > 1
    links = _links(
        slots, positions, [slot for slot in np.flatnonzero(sizes > 1) if not _is_rectangle(slots == slot)]
    )
    lengths = np.linalg.norm(links[:, 0] - links[:, 1], axis=1)
    lines = "".join(f"M{x1:g} {y1:g}L{x2:g} {y2:g}" for (x1, y1), (x2, y2) in links.tolist())
    return MergeMap(
        tuple(shared), _borders(slots, merged), lines, bool(links.size and lengths.mean() > _NEAR)
    )


def _token_colours(image: Tensor, grid: tuple[int, int]) -> NDArray[np.float32]:
    """[h, w, 3], the mean colour of each token."""
    mean = functional.adaptive_avg_pool2d(image[:3].float(), grid)
    return mean.permute(1, 2, 0).numpy()


def _hex(colour: NDArray[np.float32]) -> str:
    red, green, blue = (round(float(c) * 255) for c in colour.clip(0, 1))
    return f"#{red:02x}{green:02x}{blue:02x}"


def _runs(flags: NDArray[np.bool_]) -> list[tuple[int, int]]:
    """Start and length of every run of true values."""
    edges = np.flatnonzero(np.diff(np.concatenate([[False], flags, [False]]).astype(np.int8)))
    return [(int(a), int(b - a)) for a, b in zip(edges[::2], edges[1::2], strict=True)]


def _cells(mask: NDArray[np.bool_]) -> str:
    rows = ((y, x, n) for y in range(mask.shape[0]) for x, n in _runs(mask[y]))
    return "".join(f"M{x} {y}h{n}v1h-{n}z" for y, x, n in rows)


def _borders(slots: Slots, merged: NDArray[np.bool_]) -> str:
    beside = (slots[:, 1:] != slots[:, :-1]) & (merged[:, 1:] | merged[:, :-1])
    below = (slots[1:] != slots[:-1]) & (merged[1:] | merged[:-1])
    lines = [f"M{x + 1} {y}v{n}" for x in range(beside.shape[1]) for y, n in _runs(beside[:, x])]
    lines += [f"M{x} {y + 1}h{n}" for y in range(below.shape[0]) for x, n in _runs(below[y])]
    return "".join(lines)


def _is_rectangle(mask: NDArray[np.bool_]) -> bool:
    rows, columns = np.flatnonzero(mask.any(1)), np.flatnonzero(mask.any(0))
    area = (rows[-1] - rows[0] + 1) * (columns[-1] - columns[0] + 1)
    return bool(area == mask.sum())


def _links(slots: Slots, positions: NDArray[np.int64], which: Sequence[np.int64]) -> NDArray[np.float64]:
    """[L, 2, 2]: from the middle of a token to that of the token whose position its slot has, as (x, y)."""
    tokens = np.flatnonzero(np.isin(slots.ravel(), which))
    targets = positions[slots.ravel()[tokens]]
    ends = np.stack([tokens, targets], axis=1)[tokens != targets]
    return np.stack([ends % slots.shape[1], ends // slots.shape[1]], axis=-1) + 0.5
