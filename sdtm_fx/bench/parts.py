"""What merging adds: the plan, the merge and the unmerge on their own, and how they grow with the tokens."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch

from sdtm_fx.base_plan import Plan
from sdtm_fx.bench.configs import BenchModel
from sdtm_fx.bench.measure import StageTiming
from sdtm_fx.bench.pairing import BenchSetup
from sdtm_fx.bench.timing import median_seconds
from sdtm_fx.grids import TokenGrid, tokens_on
from sdtm_fx.methods.base import Method, TokenView
from sdtm_fx.recipe.schema import Recipe

_CALLS_ON_DEVICE = 20


@dataclass(frozen=True)
class PartTimes:
    """The parts of merging at one site, each on its own.

    Attributes:
        stage: Name of the stage.
        tokens: Image tokens N.
        removed: Tokens removed.
        plan_seconds: Finding what to merge, once per block.
        merge_seconds: [B, N, D] to [B, M, D].
        unmerge_seconds: [B, M, D] to [B, N, D].
    """

    stage: str
    tokens: int
    removed: int
    plan_seconds: float
    merge_seconds: float
    unmerge_seconds: float

    @property
    def seconds(self) -> float:
        """All three."""
        return self.plan_seconds + self.merge_seconds + self.unmerge_seconds


@dataclass(frozen=True)
class PlanShare:
    """What finding the plans takes of a merged call.

    Plans are timed on their own, so what fuses with other work inside a call counts in full here.

    Attributes:
        stage: Name of the stage.
        plans: Plans that a call makes.
        plan_seconds: Time of one.
        call_seconds: Time of a merged call.
    """

    stage: str
    plans: int
    plan_seconds: float
    call_seconds: float

    @property
    def share(self) -> float:
        """The fraction of the call."""
        return self.plans * self.plan_seconds / self.call_seconds


def plan_shares(stages: Sequence[StageTiming], parts: Sequence[PartTimes]) -> tuple[PlanShare, ...]:
    """Put the time of plans beside that of the calls that make them.

    Args:
        stages: Timings of merged calls.
        parts: Timings of the parts at the same size.
    """
    plan_seconds = {part.stage: part.plan_seconds for part in parts}
    return tuple(
        PlanShare(timing.stage, timing.plans, plan_seconds[timing.stage], timing.merged_seconds)
        for timing in stages
        if timing.stage in plan_seconds
    )


def time_parts(
    model: BenchModel,
    recipe: Recipe,
    setup: BenchSetup,
    grids: Sequence[TokenGrid],
    on_run: Callable[[], None] = lambda: None,
) -> tuple[PartTimes, ...]:
    """Time plan, merge and unmerge of every merging stage, each compiled on its own where the setup says so.

    Stages that plan nothing are left out, and so are those whose plan is part of attention.

    Args:
        model: Says how wide a token is, and how many CFG halves a batch holds.
        recipe: Its stages say by which method; its ratio curve is not used.
        setup: Sizes and numbers; of the ratio, what the method can remove.
        grids: (height, width) in tokens.
        on_run: Called after each stage and grid, for progress bars.
    """
    times = []
    for stage in recipe.stages:
        if not stage.method.merges or "attention" in stage.method.wants():
            continue
        for grid in grids:
            times.append(_time_stage(stage.name, stage.method, grid, model, recipe, setup))
            on_run()
    return tuple(times)


def _time_stage(
    name: str, method: Method, grid: TokenGrid, model: BenchModel, recipe: Recipe, setup: BenchSetup
) -> PartTimes:
    batch, tokens, device = setup.batch * model.halves, tokens_on(grid), setup.device
    whole_batch = "batch" in recipe.plan.share
    halves = model.halves if "cfg" in recipe.plan.share else 1
    remove = min(int(tokens * setup.ratio), method.capacity(grid)) // method.quantum() * method.quantum()
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(batch, tokens, model.width, generator=generator).to(device, setup.dtype)
    ages = torch.zeros(1 if whole_batch else batch // halves, tokens, dtype=torch.int32, device=device)
    salt = torch.zeros((), dtype=torch.int64, device=device)
    important = None
    if "importance" in method.needs:
        important = torch.rand(1 if whole_batch else batch // halves, tokens, generator=generator).to(device)

    def plan(x: torch.Tensor) -> Plan:
        metric = _metric(x, whole_batch, halves)
        needed = ages if "ages" in method.needs else None
        made = method.plan(TokenView(metric, grid, needed, None, salt, important), remove)
        if needed is not None:
            needed.copy_(made.next_ages(needed))
        return made if whole_batch or halves == 1 else made.repeat(halves)

    def merge(plan: Plan, x: torch.Tensor) -> torch.Tensor:
        return plan.merge(x)

    def unmerge(plan: Plan, y: torch.Tensor) -> torch.Tensor:
        return plan.unmerge(y)

    functions: list[Callable[..., Any]] = [plan, merge, unmerge]
    if setup.compiled:
        torch.compiler.reset()
        functions = [torch.compile(f, fullgraph=True, dynamic=False) for f in functions]
    with torch.no_grad():
        made = functions[0](x)
        merged = functions[1](made, x)
        arguments: list[tuple[Any, ...]] = [(x,), (made, x), (made, merged)]
        # On a device, starting a part may take longer than the part itself.
        calls = _CALLS_ON_DEVICE if device.type == "cuda" else 1
        timed = [
            median_seconds(partial(f, *a), device, setup.runs, calls)
            for f, a in zip(functions, arguments, strict=True)
        ]
    return PartTimes(name, tokens, remove, *timed)


def _metric(x: torch.Tensor, whole_batch: bool, halves: int) -> torch.Tensor:
    """The tokens that plans are made from, [B, N, D]: averaged over what shares a plan."""
    if whole_batch:
        return x.mean(0, keepdim=True)
    return x if halves == 1 else x.unflatten(0, (halves, -1)).mean(0)
