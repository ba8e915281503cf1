"""Assignment plans: which tokens share a slot, and how features go into slots and come back."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, replace

import torch
from torch import Tensor
from torch.nn import functional

from sdtm_fx.base_plan import Plan
from sdtm_fx.errors import PlanError
from sdtm_fx.reductions import Reduce, lengthen
from sdtm_fx.rows import flat_rows, take_rows


@dataclass(frozen=True)
class MergePlan(Plan):
    """Assigns N tokens to M slots; merging makes one token of a slot, unmerging copies it back.

    P is the batch of the plan: that of the features, or 1 when the whole batch shares it. Sizes are
    static, so a plan can live inside a compiled graph.

    Attributes:
        assign: [P, N] int64, the slot of every token.
        positions: [P, M] int64, the token that represents each slot (whose position it takes).
        order: [P, N] int64, the tokens sorted by slot.
        starts: [P, M] int64, where each slot begins in `order`.
        kept: M, the number of slots.
        uniform: (a, g) when the first `a` slots hold one token and all others but the trailing ones hold `g`; else
            None.
        trailing: How many slots at the end hold one token each, where `uniform` is known: what follows the image.
        reduce: What becomes of the tokens of a slot.
        stands_for: [P, N] int64, how many tokens each of the N stands for itself, where merges are stacked; None: one.
    """

    assign: Tensor
    positions: Tensor
    order: Tensor
    starts: Tensor
    kept: int
    uniform: tuple[int, int] | None = None
    trailing: int = 0
    reduce: Reduce = "mean"
    stands_for: Tensor | None = None

    @property
    def tokens(self) -> int:
        """N, the number of tokens before merging."""
        return self.assign.shape[1]

    @property
    def slots(self) -> Tensor:
        """[P, N] int64, the slot of every token: `assign`."""
        return self.assign

    @property
    def macs_per_channel(self) -> int:
        """None: slots are gathered and averaged, and copied back."""
        return 0

    @property
    def members(self) -> Tensor:
        """[P, M] int64, how many of the N tokens each slot holds."""
        return self._ends - self.starts

    @property
    def sizes(self) -> Tensor:
        """[P, M] int64, the number of tokens that each slot stands for: `members`, unless merges are stacked."""
        if self.stands_for is None:
            return self.members
        before = functional.pad(self.stands_for.gather(1, self.order).cumsum(1), (1, 0))
        return before.gather(1, self._ends) - before.gather(1, self.starts)

    @property
    def _ends(self) -> Tensor:
        end = torch.full_like(self.starts[:, :1], self.tokens)
        return torch.cat([self.starts[:, 1:], end], dim=1)

    @property
    def merged_mask(self) -> Tensor:
        """[P, N] bool, the tokens that share their slot with others."""
        if self.uniform is not None:
            shared = self.assign >= self.uniform[0]
            return shared & (self.assign < self.kept - self.trailing) if self.trailing else shared
        return (self.members > 1).gather(1, self.assign)

    def merge(self, x: Tensor, weights: Tensor | None = None) -> Tensor:
        """Return one token per slot, made as `reduce` says: the mean by default.

        Args:
            x: [B, N, D] float.
            weights: [B, N] float, how much each token counts in the mean; absent: `stands_for`, or the same for
                all. Every slot has some weight.

        Returns:
            [B, M, D] in the dtype of `x`, accumulated in float32.

        Raises:
            PlanError: `x` has another batch or length than the plan, or there are weights where no mean is taken.
        """
        self._check(x, self.tokens, "merge")
        if weights is not None:
            return self._weighted(x, weights)
        if self.reduce == "prune":
            return take_rows(x, self.positions)
        if self.reduce == "mlerp":
            return self._mlerp(x)
        return self._mean(x)

    def unmerge(self, y: Tensor) -> Tensor:
        """Return each token's copy of its slot.

        Args:
            y: [B, M, D], any dtype.

        Returns:
            [B, N, D].

        Raises:
            PlanError: `y` has another batch or length than the plan.
        """
        self._check(y, self.kept, "unmerge")
        return take_rows(y, self.assign)

    def placed(self, before: int, behind: int = 0) -> MergePlan:
        """Return this plan in a sequence in which tokens stand around its own that stay as they are.

        Args:
            before: Number of tokens in front, for instance of text, or of a frame that is protected.
            behind: Number of tokens that follow, for instance of reference images, or of text.
        """
        rows, device = self.assign.shape[0], self.assign.device
        lead = torch.arange(before, device=device).expand(rows, before)
        tail = torch.arange(behind, device=device).expand(rows, behind)

        def around(values: Tensor, last: int) -> Tensor:
            parts = [lead, values + before]
            return torch.cat([*parts, tail + (last + before)] if behind else parts, dim=1)

        alone, group = self.uniform if self.uniform is not None else (0, 0)
        stands_for = self.stands_for
        if stands_for is not None:
            stands_for = torch.cat([torch.ones_like(lead), stands_for, torch.ones_like(tail)], dim=1)
        return replace(
            self,
            assign=around(self.assign, self.kept),
            positions=around(self.positions, self.tokens),
            order=around(self.order, self.tokens),
            starts=around(self.starts, self.tokens),
            kept=self.kept + before + behind,
            uniform=None if self.uniform is None else (alone + before, group),
            trailing=self.trailing + behind,
            stands_for=stands_for,
        )

    def reduced_by(self, reduce: Reduce | None) -> MergePlan:
        """Return the plan with another reduction; None leaves it as it is."""
        return self if reduce in (None, self.reduce) else replace(self, reduce=reduce)

    def names(self) -> tuple[str, ...]:
        """Return what the tensors are called, in the order of `tensors()`."""
        names = ("assign", "positions", "order", "starts")
        return names if self.stands_for is None else (*names, "stands_for")

    def with_tensors(self, tensors: Iterable[Tensor]) -> MergePlan:
        """Return the plan with other tensors, in the order of `tensors()`."""
        assign, positions, order, starts, *more = tensors
        stands_for = more[0] if more else None
        return replace(
            self, assign=assign, positions=positions, order=order, starts=starts, stands_for=stands_for
        )

    def _mean(self, x: Tensor) -> Tensor:
        """The mean of the tokens that each slot stands for."""
        if self.stands_for is None:
            return self._plain_mean(x)
        means = self._weighted_mean(x, self.stands_for.expand(x.shape[0], -1))
        return self._where_several(means, x)

    def _plain_mean(self, x: Tensor) -> Tensor:
        if self.uniform is not None and torch.compiler.is_compiling():
            return self._merge_windows(x, *self.uniform)
        if x.dtype == torch.float16 and x.device.type == "cpu":
            # This kernel sums in half precision before it divides, which overflows.
            return self._bags(x.float(), "mean").to(x.dtype)
        return self._bags(x, "mean")

    def _mlerp(self, x: Tensor) -> Tensor:
        values = x.float()
        norms = torch.linalg.vector_norm(values, dim=-1, keepdim=True)
        longer = lengthen(self._mean(values), self._bags(norms, "max")[..., 0])
        return self._where_several(longer.to(x.dtype), x)

    def _where_several(self, reduced: Tensor, x: Tensor) -> Tensor:
        """What slots of several tokens were reduced to; a slot of one holds that token, to the last bit."""
        return torch.where((self.members > 1)[..., None], reduced, take_rows(x, self.positions))

    def _weighted(self, x: Tensor, weights: Tensor) -> Tensor:
        if self.reduce != "mean" or weights.shape != x.shape[:2]:
            raise PlanError(
                f"merge: found weights of shape {tuple(weights.shape)} for {self.reduce!r}; accepted "
                f"{list(x.shape[:2])}, one per token, where the mean is taken"
            )
        return self._weighted_mean(x, weights)

    def _weighted_mean(self, x: Tensor, weights: Tensor) -> Tensor:
        column = weights.float()[..., None]
        # The mean of both, and not the sum: the size of a slot cancels out.
        return (self._plain_mean(x.float() * column) / self._plain_mean(column)).to(x.dtype)

    def _bags(self, x: Tensor, mode: str) -> Tensor:
        """[B, N, D] to [B, M, D], in one kernel.

        It gathers the rows of a slot and reduces them, in a fixed order and without atomics.
        """
        batch, tokens, width = x.shape
        reduced = functional.embedding_bag(
            flat_rows(self.order, batch, tokens),
            x.reshape(batch * tokens, width),
            flat_rows(self.starts, batch, tokens),
            mode=mode,
        )
        return reduced.view(batch, self.kept, width)

    def _merge_windows(self, x: Tensor, alone: int, group: int) -> Tensor:
        """Merge equal groups by a gather and a mean, which a compiler fuses with what surrounds them."""
        rows, end = take_rows(x, self.order), self.tokens - self.trailing
        windows = rows[:, alone:end].unflatten(1, (self.kept - self.trailing - alone, group))
        parts = [rows[:, :alone], windows.mean(dim=2)]
        return torch.cat([*parts, rows[:, end:]] if self.trailing else parts, dim=1)


def identity_plan(batch: int, tokens: int, device: torch.device) -> MergePlan:
    """Return the plan that merges nothing and keeps the order of the tokens."""
    rows = torch.arange(tokens, device=device).expand(batch, tokens)
    return MergePlan(assign=rows, positions=rows, order=rows, starts=rows, kept=tokens, uniform=(tokens, 1))


def plan_from_groups(order: Tensor, alone: int, group: int) -> MergePlan:
    """Return the plan whose slots are consecutive runs of `order`: single tokens, then groups.

    Args:
        order: [P, N] int64, a permutation of the tokens per row.
        alone: How many leading tokens of `order` keep a slot of their own.
        group: Number of tokens in each following slot; divides N - alone.
    """
    batch, tokens = order.shape
    groups = (tokens - alone) // group
    rank = torch.arange(tokens, device=order.device)
    slot = torch.where(rank < alone, rank, alone + (rank - alone).div(group, rounding_mode="floor"))
    index = torch.arange(alone + groups, device=order.device)
    starts = torch.where(index < alone, index, alone + (index - alone) * group).expand(batch, -1)
    return MergePlan(
        assign=_inverse(order, slot),
        positions=order.gather(1, starts),
        order=order,
        starts=starts,
        kept=alone + groups,
        uniform=(alone, group),
    )


def plan_from_parents(parent: Tensor, kept: int) -> MergePlan:
    """Return the plan in which every token joins the slot of its parent; slots are in raster order.

    Args:
        parent: [P, N] int64, the token that represents each token; a representative is its own parent.
        kept: Number of representatives, the same in every row.
    """
    batch, tokens = parent.shape
    own = torch.arange(tokens, device=parent.device).expand(batch, tokens)
    is_slot = parent == own
    slot = is_slot.long().cumsum(1) - 1
    assign = slot.gather(1, parent)
    # Both sorts are on integers and stable: representatives first, then tokens slot by slot.
    positions = torch.argsort((~is_slot).to(torch.uint8), dim=1, stable=True)[:, :kept]
    ordered, order = torch.sort(assign, dim=1, stable=True)
    slots = torch.arange(kept, device=parent.device).expand(batch, kept).contiguous()
    return MergePlan(
        assign=assign,
        positions=positions,
        order=order,
        starts=torch.searchsorted(ordered, slots),
        kept=kept,
    )


def _inverse(order: Tensor, value: Tensor) -> Tensor:
    """Return out with out[p, order[p, i]] = value[i]; the indices are unique, so the scatter is exact."""
    return torch.empty_like(order).scatter_(1, order, value.expand_as(order))
