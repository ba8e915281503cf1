"""What lives across the steps of one generation, and where it lives."""

from __future__ import annotations

from collections.abc import Hashable
from dataclasses import dataclass, field

import torch

from sdtm_fx.plan import MergePlan


@dataclass
class Feature:
    """A site's output at the last one or two dense steps, full length: what a forecast starts from.

    Attributes:
        newer: Output at the last refresh, [B, N, D].
        older: Output at the refresh before, or None for forecasts of order 0.
    """

    newer: torch.Tensor
    older: torch.Tensor | None

    def record(self, value: torch.Tensor, shift: bool) -> None:
        """Store a dense output in place; with `shift`, what was newer becomes older first."""
        if self.older is not None and shift:
            self.older.copy_(self.newer)
        self.newer.copy_(value.detach())  # no history: it would grow with every step


@dataclass
class BranchState:
    """State of one branch (one CFG half where they are separate calls) at one shape.

    Attributes:
        ages: Per plan group, [P, N] int32: steps since each token was last on its own.
        plans: Per plan group, the plan of an earlier step that this step reuses.
        features: Per block and site, the outputs of dense steps.
        refreshed: Steps of the last two refreshes, newest first.
        slope: 0-d float32 tensor: (now - newer) / (newer - older), for forecasts of order 1.
        above: Per plan group, how many tokens could be merged above the threshold (SDTM*), 0-d int64.
    """

    ages: dict[int, torch.Tensor] = field(default_factory=dict)
    plans: dict[int, MergePlan] = field(default_factory=dict)
    features: dict[tuple[int, str], Feature] = field(default_factory=dict)
    refreshed: tuple[int, ...] = ()
    slope: torch.Tensor | None = None
    above: dict[int, torch.Tensor] = field(default_factory=dict)

    def set_refreshed(self, step: int) -> bool:
        """Note that this step stores features; return whether stored ones move to `older`."""
        if self.refreshed and self.refreshed[0] == step:
            return False
        self.refreshed = (step, *self.refreshed[:1])
        return True

    def set_slope(self, step: int, device: torch.device) -> None:
        """Update how far ahead of the last refresh `step` is, in units of the last interval."""
        slope = 0.0
        if len(self.refreshed) == 2:
            newer, older = self.refreshed
            slope = (step - newer) / (newer - older)
        if self.slope is None:
            self.slope = torch.zeros((), device=device)
        self.slope.fill_(slope)

    def bytes(self) -> dict[str, int]:
        """Memory held, in bytes, by what it is held for."""
        features = [t for f in self.features.values() for t in (f.newer, f.older) if t is not None]
        plans = [t for p in self.plans.values() for t in (p.assign, p.positions)]
        return {
            "features": _size(features),
            "ages": _size(list(self.ages.values())),
            "plans": _size(plans),
        }


@dataclass
class RunState:
    """The branches of the generation in progress."""

    branches: dict[Hashable, BranchState] = field(default_factory=dict)

    def branch(self, key: Hashable) -> BranchState:
        """The state of a branch, made when first asked for."""
        return self.branches.setdefault(key, BranchState())

    def clear(self) -> None:
        """Forget everything: a new generation starts."""
        self.branches.clear()

    def bytes(self) -> dict[str, int]:
        """Memory held by all branches, in bytes, by what it is held for."""
        total: dict[str, int] = {"features": 0, "ages": 0, "plans": 0}
        for branch in self.branches.values():
            for name, size in branch.bytes().items():
                total[name] += size
        return total


def _size(tensors: list[torch.Tensor]) -> int:
    return sum(t.numel() * t.element_size() for t in tensors)
