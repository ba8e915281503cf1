"""What every merge plan is: a way from N tokens to M slots, and back."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterable
from enum import Enum
from typing import TypeVar

import torch
from torch import Tensor

from sdtm_fx.errors import PlanError, SequenceError
from sdtm_fx.reductions import Reduce

AnyPlan = TypeVar("AnyPlan", bound="Plan")


class Unmerging(Enum):
    """What unmerging does to a slot, and with it, which work may move in front of it and change nothing."""

    COPY = "copy"
    """Every token gets one slot as it is: all work on single tokens commutes."""
    AVERAGE = "average"
    """Every token gets a mean of slots, with weights that sum to one: affine work commutes (scaling of
    channels, linear layers with their biases); what is not linear, an activation for instance, does not."""
    LINEAR = "linear"
    """Every token gets some linear combination of slots: linear work commutes, a bias does not."""


class Plan(ABC):
    """Takes N tokens to M slots and back, the same way for every channel.

    P is the batch of the plan: that of the features, or 1 when the whole batch shares it. Sizes are static,
    so a plan can live inside a compiled graph.

    Attributes:
        positions: [P, M] int64, the token that represents each slot (whose position it takes).
        kept: M, the number of slots.
    """

    positions: Tensor
    kept: int

    @property
    @abstractmethod
    def tokens(self) -> int:
        """N, the number of tokens before merging."""

    @property
    def removed(self) -> int:
        """N - M, the number of tokens that merging takes away."""
        return self.tokens - self.kept

    @property
    @abstractmethod
    def slots(self) -> Tensor:
        """[P, N] int64, the slot that gives each token most of what it gets back."""

    @property
    @abstractmethod
    def merged_mask(self) -> Tensor:
        """[P, N] bool, the tokens that share what they get back with others."""

    @property
    @abstractmethod
    def macs_per_channel(self) -> int:
        """Multiply-accumulates of one merge, and of one unmerge, per channel and sample."""

    @abstractmethod
    def merge(self, x: Tensor) -> Tensor:
        """Bring features into slots.

        Args:
            x: [B, N, D] float.

        Returns:
            [B, M, D] in the dtype of `x`.

        Raises:
            PlanError: `x` has another batch or length than the plan.
        """

    @abstractmethod
    def unmerge(self, y: Tensor) -> Tensor:
        """Bring slots back to tokens.

        Args:
            y: [B, M, D] float.

        Returns:
            [B, N, D] in the dtype of `y`.

        Raises:
            PlanError: `y` has another batch or length than the plan.
        """

    @abstractmethod
    def placed(self: AnyPlan, before: int, behind: int = 0) -> AnyPlan:
        """Return this plan in a sequence in which tokens stand around its own that stay as they are.

        Args:
            before: Number of tokens in front, for instance of text, or of a frame that is protected.
            behind: Number of tokens that follow, for instance of reference images, or of text.
        """

    @abstractmethod
    def names(self) -> tuple[str, ...]:
        """Return what the tensors are called, in the order of `tensors()`."""

    @abstractmethod
    def with_tensors(self: AnyPlan, tensors: Iterable[Tensor]) -> AnyPlan:
        """Return the plan with other tensors, in the order of `tensors()`."""

    def tensors(self) -> tuple[Tensor, ...]:
        """Return all that a plan of these sizes holds; the first axis of each is P."""
        return tuple(getattr(self, name) for name in self.names())

    def prepared(self: AnyPlan, dtype: torch.dtype) -> AnyPlan:
        """Return the plan with all that its merges and unmerges of one call would each make anew.

        What they compute stays the same, bit for bit. `tensors()` are those that a plan has without it.

        Args:
            dtype: Of the features.
        """
        return self

    def reduced_by(self: AnyPlan, reduce: Reduce | None) -> AnyPlan:
        """Return the plan with another reduction; None leaves it as it is.

        Args:
            reduce: What becomes of the tokens of a slot.

        Raises:
            PlanError: The slots of this plan are weighted means, and cannot be anything else.
        """
        if reduce not in (None, "mean"):
            raise PlanError(f"found reduce {reduce!r} for slots that are weighted means; accepted 'mean'")
        return self

    def repeat(self: AnyPlan, times: int) -> AnyPlan:
        """Return the plan of a batch that stacks `times` copies of this plan's batch (CFG halves)."""
        return self.with_tensors(t.repeat(times, *[1] * (t.ndim - 1)) for t in self.tensors())

    def copy_(self, other: Plan) -> None:
        """Take over another plan of the same sizes, in place."""
        for mine, its in zip(self.tensors(), other.tensors(), strict=True):
            mine.copy_(its)

    def next_ages(self, ages: Tensor) -> Tensor:
        """Return the ages after this plan: one more where a token is merged, zero where it is not.

        Args:
            ages: [B, N] int, steps since each token was last alone in its slot.
        """
        return torch.where(self.merged_mask, ages + 1, torch.zeros_like(ages))

    def _check(self, x: Tensor, length: int, verb: str) -> None:
        batch = self.positions.shape[0]
        if x.ndim != 3 or x.shape[1] != length or batch not in (1, x.shape[0]):
            raise SequenceError(
                f"{verb}: found a tensor of shape {tuple(x.shape)}; this plan accepts "
                f"[{'any batch' if batch == 1 else batch}, {length}, any width]"
            )
