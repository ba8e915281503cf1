"""State across steps: token ages, kept plans, stored features. One per CFG branch, cleared per generation.

A compiled model keeps its tensors where they are: a branch that comes again in the next generation takes them over.
"""

from __future__ import annotations

from collections.abc import Hashable
from dataclasses import dataclass, field

import torch

from sdtm_fx.base_plan import Plan
from sdtm_fx.runtime.feature import Feature


@dataclass
class BranchState:
    """State of one branch (one CFG half where they are separate calls) at one shape.

    Attributes:
        static: Whether all tensors are laid out before the blocks run, and stay where they are.
        ages: Per plan group, [P, N] int32: steps since each token was last on its own.
        plans: Per plan group, the plan of an earlier step that this step reuses.
        held: Stage of those plans and how many tokens they remove, None while there are none of this generation:
            another stage may remove as many by another method.
        laid_out: Tensors for plans, by stage and tokens removed.
        features: Per block and site, the outputs that forecasts start from.
        spare: Features of an earlier generation whose tensors serve again; their values mean nothing.
        unsettled: Features that were laid out for the call before: their older value is still to be the newer one.
        refreshed: Steps of the last two refreshes, newest first.
        slope: 0-d float32 tensor: (now - newer) / (newer - older), for forecasts of order 1.
        now: 0-d float32 tensor: the step, for forecasts of order 1 from steps that every token has of its own.
        salt: 0-d int64 tensor: the counter that the draws of this step start from.
        prompt_bias: 0-d float32 tensor added to the logits of text keys, None without a prompt weight.
        above: Per plan group, how many tokens could be merged above the threshold (SDTM*), 0-d int64.
        measured: The same, of the last call before this one that measured.
        importance: [B, N] float32, what guidance changed at each token in the call before this one.
        has_importance: Whether a call of this generation has filled it.
    """

    static: bool = False
    ages: dict[int, torch.Tensor] = field(default_factory=dict)
    plans: dict[int, Plan] = field(default_factory=dict)
    held: tuple[int, int] | None = None
    laid_out: dict[tuple[int, int], dict[int, Plan]] = field(default_factory=dict)
    features: dict[tuple[int, str], Feature] = field(default_factory=dict)
    spare: dict[tuple[int, str], Feature] = field(default_factory=dict)
    unsettled: list[Feature] = field(default_factory=list)
    refreshed: tuple[int, ...] = ()
    slope: torch.Tensor | None = None
    now: torch.Tensor | None = None
    salt: torch.Tensor | None = None
    prompt_bias: torch.Tensor | None = None
    above: dict[int, torch.Tensor] = field(default_factory=dict)
    measured: dict[int, torch.Tensor] = field(default_factory=dict)
    importance: torch.Tensor | None = None
    has_importance: bool = False

    def set_refreshed(self, step: int) -> bool:
        """Note that this step stores features; return whether stored ones move to `older`."""
        if self.refreshed and self.refreshed[0] == step:
            return False
        self.refreshed = (step, *self.refreshed[:1])
        return True

    def settle(self) -> None:
        """Make features that were stored for the first time constant: one value draws no line."""
        for feature in self.unsettled:
            feature.settle()
        self.unsettled = []

    def shift(self) -> None:
        """Make every newer feature the older one, in place, before a refresh writes over it."""
        pairs = [pair for feature in self.features.values() for pair in feature.pairs()]
        if pairs:
            torch._foreach_copy_([older for _, older in pairs], [newer for newer, _ in pairs])

    def set_slope(self, step: int, device: torch.device) -> None:
        """Update how far ahead of the last refresh `step` is, in units of the last interval."""
        slope = 0.0
        if len(self.refreshed) == 2:
            newer, older = self.refreshed
            slope = (step - newer) / (newer - older)
        self.slope = _filled(self.slope, slope, torch.float32, device)

    def set_now(self, step: int, device: torch.device) -> None:
        """Update the step."""
        self.now = _filled(self.now, step, torch.float32, device)

    def set_salt(self, salt: int, device: torch.device) -> None:
        """Update the counter of draws."""
        self.salt = _filled(self.salt, salt, torch.int64, device)

    def set_prompt_bias(self, bias: float, device: torch.device) -> None:
        """Update the log-weight of text keys."""
        self.prompt_bias = _filled(self.prompt_bias, bias, torch.float32, device)

    def lay_out_importance(self, batch: int, tokens: int, device: torch.device) -> None:
        """Make the tensor that scores are handed on in, unless it is there."""
        if self.importance is None:
            with torch.inference_mode(False):
                self.importance = torch.zeros(batch, tokens, device=device)

    def set_importance(self, change: torch.Tensor) -> None:
        """Hand scores on to the next call, in place."""
        batch, tokens = change.shape
        self.lay_out_importance(batch, tokens, change.device)
        assert self.importance is not None
        self.importance.copy_(change)
        self.has_importance = True

    def keep_plan(self, group: int, plan: Plan) -> None:
        """Keep a plan for later steps; where tensors were laid out for it, in those."""
        if self.static:
            self.plans[group].copy_(plan)
        else:
            self.plans[group] = plan

    def reset(self) -> None:
        """Forget what the tensors mean, for a new generation, and keep the tensors."""
        self.spare.update(self.features)
        self.features, self.unsettled = {}, []
        self.refreshed, self.held, self.above, self.measured = (), None, {}, {}
        self.has_importance = False
        for ages in self.ages.values():
            ages.zero_()

    def bytes(self) -> dict[str, int]:
        """Memory held, in bytes, by what it is held for."""
        kept = [*self.features.values(), *self.spare.values()]
        features = [t for f in kept for t in f.tensors().values()]
        laid_out = [plan for plans in self.laid_out.values() for plan in plans.values()]
        plans = [t for plan in [*self.plans.values(), *laid_out] for t in plan.tensors()]
        return {
            "features": _size(features),
            "ages": _size(list(self.ages.values())),
            "importance": 0 if self.importance is None else _size([self.importance]),
            "plans": _size(plans),
        }


@dataclass
class RunState:
    """The branches of the generation in progress.

    Attributes:
        branches: By what tells them apart.
        former: Branches of the generation before, whose tensors serve again when the same branch comes.
    """

    branches: dict[Hashable, BranchState] = field(default_factory=dict)
    former: dict[Hashable, BranchState] = field(default_factory=dict)

    def branch(self, key: Hashable) -> BranchState:
        """The state of a branch, made when first asked for."""
        if key not in self.branches:
            former = self.former.pop(key, None)
            if former is not None:
                former.reset()
            self.branches[key] = former or BranchState()
        return self.branches[key]

    def clear(self, keep_tensors: bool = False) -> None:
        """Forget everything: a new generation starts.

        Args:
            keep_tensors: Branches that the new generation asks for again get their tensors back; those of the
                others go when the generation after starts.
        """
        self.former = self.branches if keep_tensors else {}
        self.branches = {}

    def bytes(self) -> dict[str, int]:
        """Memory held by all branches, in bytes, by what it is held for."""
        total: dict[str, int] = {"features": 0, "ages": 0, "importance": 0, "plans": 0}
        for branch in [*self.branches.values(), *self.former.values()]:
            for name, size in branch.bytes().items():
                total[name] += size
        return total


def _filled(
    scalar: torch.Tensor | None, value: float | int, dtype: torch.dtype, device: torch.device
) -> torch.Tensor:
    """A 0-d tensor that stays where it is. Filled on the device: a copy from the host would make it wait."""
    if scalar is None or scalar.device != device:
        with torch.inference_mode(False):
            scalar = torch.zeros((), dtype=dtype, device=device)
    return scalar.fill_(value)


def _size(tensors: list[torch.Tensor]) -> int:
    """Bytes of the memory behind some tensors, each piece once: plans share theirs, and repeat rows."""
    storages = {t.untyped_storage()._cdata: t.untyped_storage().nbytes() for t in tensors}
    return sum(storages.values())
