"""What the matching methods share: who may absorb, who is most alike, who is merged."""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor

from sdtm_fx.grids import TokenGrid
from sdtm_fx.hashing import hash_index
from sdtm_fx.methods.base import TokenView
from sdtm_fx.plan import MergePlan, plan_from_parents
from sdtm_fx.rows import take_rows
from sdtm_fx.similarity import inverse_norms, without_autocast
from sdtm_fx.windows import Windows

Target = Literal["oldest", "youngest", "first", "random"]
"""Which token of a window the others may join: of largest or smallest age (the first on ties, and when there
are no ages), the top-left one, or one drawn by hash, the same for the whole batch."""

AGED: frozenset[Target] = frozenset({"oldest", "youngest"})
"""The targets that ages decide."""

_TABLE_ELEMENTS = 1 << 24
"""Cosine tables are made in pieces of at most this many elements: 64 MiB in float32."""


def choose_targets(view: TokenView, windows: Windows, target: Target) -> Tensor:
    """Return the place inside each window of the token that absorbs others, [B or 1, windows] int64."""
    device = view.metric.device
    if target == "oldest" and view.ages is not None:
        return windows.split(view.ages).argmax(dim=2)
    if target == "youngest" and view.ages is not None:
        return windows.split(view.ages).argmin(dim=2)
    if target == "random":
        return hash_index(torch.arange(windows.count, device=device), view.salt, windows.size)[None]
    return torch.zeros(1, windows.count, dtype=torch.int64, device=device)


def split_windows(windows: Windows, target: Tensor) -> tuple[Tensor, Tensor]:
    """Split windows into the token that absorbs and the others.

    Args:
        windows: The windows.
        target: [P, windows] int64, place of the absorbing token inside each window.

    Returns:
        Absorbing tokens [P, windows], and the others [P, windows * (K - 1)], window by window.
    """
    window = torch.arange(windows.count, device=target.device)
    others = torch.arange(windows.size - 1, device=target.device)
    others = others + (others >= target[..., None]).long()
    return windows.token_at(window, target), windows.token_at(window[:, None], others).flatten(1)


def best_match(metric: Tensor, sources: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
    """Find the most cosine-similar target of every source among all targets, O(S·T·D).

    Args:
        metric: [B, N, D] float.
        sources: [P, S] int64 tokens, P is B or 1.
        targets: [P, T] int64 tokens.

    Returns:
        Cosine [B, S] float32, and the target token [B, S] int64 (the first on ties).
    """
    goal = _unit_rows(metric, targets)
    rows = take_rows(metric, sources)
    step = max(1, _TABLE_ELEMENTS // max(1, metric.shape[0] * targets.shape[1]))
    cosines, places = [], []
    with without_autocast(metric.device):
        for piece in rows.split(step, dim=1):
            piece = piece.float()
            cosine, place = (piece @ goal.mT).max(dim=2)
            cosines.append(cosine * inverse_norms(piece))
            places.append(place)
    partner = targets.expand(metric.shape[0], -1).gather(1, torch.cat(places, dim=1))
    return torch.cat(cosines, dim=1), partner


def nearest_on_grid(grid: TokenGrid, sources: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
    """Find the target that is nearest to every source on the grid, where a frame is as far as a row.

    Args:
        grid: Height and width in tokens, behind the frames if there are some.
        sources: [B, S] int64 tokens.
        targets: [B, T] int64 tokens.

    Returns:
        Squared distance [B, S] float32, exact, and the target token [B, S] int64 (the first on ties).
    """
    step = max(1, _TABLE_ELEMENTS // max(1, targets.numel()))
    goals = _places(targets[:, None], grid)
    distances, places = [], []
    for piece in sources.split(step, dim=1):
        own = _places(piece[..., None], grid)
        along = [(place - goal).square() for place, goal in zip(own, goals, strict=True)]
        distance, place = sum(along[1:], start=along[0]).min(dim=2)
        distances.append(distance)
        places.append(place)
    return torch.cat(distances, dim=1), targets.gather(1, torch.cat(places, dim=1))


def _places(tokens: Tensor, grid: TokenGrid) -> list[Tensor]:
    """The place of tokens along each side of the grid."""
    places = []
    for side in reversed(grid[1:]):
        places.append(tokens.remainder(side).float())
        tokens = tokens.div(side, rounding_mode="floor")
    return [tokens.float(), *reversed(places)]


def plan_best(sources: Tensor, partner: Tensor, rank: Tensor, remove: int, tokens: int) -> MergePlan:
    """Merge the `remove` sources of highest rank into their partners.

    Args:
        sources: [P, S] int64 tokens that may go, P is B or 1.
        partner: [B, S] int64, the token each source joins; never itself a source.
        rank: [B, S] float; equal ranks go by order in `sources`.
        remove: How many sources go.
        tokens: N.
    """
    batch = partner.shape[0]
    chosen = torch.argsort(rank, dim=1, descending=True, stable=True)[:, :remove]
    gone = sources.expand(batch, -1).gather(1, chosen)
    own = torch.arange(tokens, device=partner.device).repeat(batch, 1)
    return plan_from_parents(own.scatter_(1, gone, partner.gather(1, chosen)), tokens - remove)


def _unit_rows(metric: Tensor, rows: Tensor) -> Tensor:
    """Gather rows and scale them to norm 1: [B, N, D] and [P, L] to [B, L, D] float32."""
    x = take_rows(metric, rows).float()
    return x * inverse_norms(x)[..., None]
