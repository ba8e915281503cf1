"""What a site keeps of its output: the last values of every token, and the forecast that starts from them."""

from __future__ import annotations

from dataclasses import dataclass

import torch


@dataclass
class Feature:
    """A site's output at the last one or two steps that stored it, full length.

    Attributes:
        newer: The last value, [B, N, D].
        older: The value before, or None for forecasts of order 0.
        newer_at: [B, N] float32, the step of the last value, where tokens have steps of their own; None where all
            have that of the last dense step.
        older_at: The step of the value before, alike.
    """

    newer: torch.Tensor
    older: torch.Tensor | None
    newer_at: torch.Tensor | None = None
    older_at: torch.Tensor | None = None

    @staticmethod
    def empty(
        shape: torch.Size, dtype: torch.dtype, device: torch.device, order: int, dated: bool
    ) -> Feature:
        """Lay out what is stored later.

        Args:
            shape: [B, N, D].
            dtype: Of the values.
            device: Of all.
            order: Of the forecasts, 0 or 1.
            dated: Whether tokens have steps of their own.
        """
        with torch.inference_mode(False):
            newer, older = (torch.zeros(shape, dtype=dtype, device=device) for _ in range(2))
            times = [torch.zeros(shape[:2], device=device) for _ in range(2)] if dated else [None, None]
        return Feature(newer, older if order == 1 else None, *times)

    @staticmethod
    def of(value: torch.Tensor, order: int, now: torch.Tensor | None) -> Feature:
        """Store a first value, which counts for the one before, too: one value draws no line.

        Args:
            value: [B, N, D].
            order: Of the forecasts, 0 or 1.
            now: 0-d float32, the step, where tokens have steps of their own.
        """
        older = value.detach().clone() if order == 1 else None
        times = [None, None] if now is None else [now.expand(value.shape[:2]).clone() for _ in range(2)]
        return Feature(value.detach().clone(), older, *times)

    def tensors(self) -> dict[str, torch.Tensor]:
        """All that is held, by name."""
        return {name: value for name, value in vars(self).items() if value is not None}

    def bytes(self) -> int:
        """What it takes in memory."""
        return sum(value.nbytes for value in self.tensors().values())

    def record(self, value: torch.Tensor, now: torch.Tensor | None = None) -> None:
        """Store a dense output in place; `BranchState.shift` has moved the one before."""
        self.newer.copy_(value.detach())  # no history: it would grow with every step
        if self.newer_at is not None and now is not None:
            self.newer_at.copy_(now.expand_as(self.newer_at))

    def update(self, value: torch.Tensor, computed: torch.Tensor, now: torch.Tensor | None = None) -> None:
        """Store, in place, what a step has computed for some tokens.

        Args:
            value: [B, N, D]; what it holds for other tokens does not matter.
            computed: [P, N] bool, which tokens.
            now: 0-d float32, the step, where tokens have steps of their own.
        """
        if self.older is not None:
            assert self.newer_at is not None and self.older_at is not None and now is not None  # noqa: PT018
            # A second evaluation of a step writes over the first.
            moves = computed & (self.newer_at < now)
            self.older.copy_(torch.where(moves[..., None], self.newer, self.older))
            self.older_at.copy_(torch.where(moves, self.newer_at, self.older_at))
            self.newer_at.copy_(torch.where(computed, now, self.newer_at))
        self.newer.copy_(torch.where(computed[..., None], value.detach(), self.newer))

    def settle(self) -> None:
        """Make the last value the one before, too."""
        for newer, older in self.pairs():
            older.copy_(newer)

    def pairs(self) -> list[tuple[torch.Tensor, torch.Tensor]]:
        """What is newer and what is older, of values and of steps; nothing for forecasts of order 0."""
        pairs = [(self.newer, self.older), (self.newer_at, self.older_at)]
        return [(a, b) for a, b in pairs if a is not None and b is not None]

    def forecast(self, slope: torch.Tensor | None, now: torch.Tensor | None) -> torch.Tensor:
        """Return a copy (order 0) or what lies on a straight line (order 1), [B, N, D]; no new tensor for order 0.

        Args:
            slope: 0-d: (now - newer) / (newer - older), where all tokens have the steps of dense ones.
            now: 0-d float32, the step, where they have steps of their own.
        """
        if self.older is None:
            return self.newer
        if self.newer_at is not None and self.older_at is not None and now is not None:
            gap = self.newer_at - self.older_at
            ahead = torch.where(gap > 0, (now - self.newer_at) / gap.clamp_min(1.0), 0.0)
            slope = ahead[..., None]
        assert slope is not None  # order 1 has one or the other
        return torch.lerp(self.newer, self.older, -slope.to(self.older.dtype))
