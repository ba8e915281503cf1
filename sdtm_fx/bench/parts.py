"""What merging adds: the plan, the merge and the unmerge on their own, and how they grow with the tokens."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from sdtm_fx.methods.base import Method, TokenView
from sdtm_fx.plan import MergePlan
from sdtm_fx.recipe.schema import Recipe


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


def time_parts(
    recipe: Recipe,
    grids: Sequence[tuple[int, int]],
    *,
    ratio: float,
    width: int,
    batch: int,
    halves: int,
    dtype: torch.dtype,
    device: torch.device,
    runs: int,
    compiled: bool,
) -> tuple[PartTimes, ...]:
    """Time plan, merge and unmerge of every merging stage on every grid.

    Args:
        recipe: Its stages say by which method.
        grids: (height, width) in tokens.
        ratio: Fraction of the tokens removed, rounded down to what the method can.
        width: Channels D.
        batch: Samples, CFG halves counted.
        halves: CFG halves that share a plan.
        dtype: Of the tokens.
        device: Where to run.
        runs: Runs per part; the median counts.
        compiled: Compile each part.
    """
    times = []
    for stage in recipe.stages:
        if stage.method.name == "skip" or "attention" in stage.method.wants():
            continue  # nothing is planned, or the plan is part of attention
        for grid in grids:
            times.append(
                _time_stage(
                    stage.name,
                    stage.method,
                    grid,
                    ratio,
                    (batch, halves, width),
                    dtype,
                    device,
                    runs,
                    compiled,
                )
            )
    return tuple(times)


def _time_stage(
    name: str,
    method: Method,
    grid: tuple[int, int],
    ratio: float,
    size: tuple[int, int, int],
    dtype: torch.dtype,
    device: torch.device,
    runs: int,
    compiled: bool,
) -> PartTimes:
    (batch, halves, width), tokens = size, grid[0] * grid[1]
    remove = min(int(tokens * ratio), method.capacity(grid)) // method.quantum() * method.quantum()
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(batch, tokens, width, generator=generator).to(device, dtype)
    ages = torch.zeros(batch // halves, tokens, dtype=torch.int32, device=device)

    def plan(x: torch.Tensor) -> MergePlan:
        metric = x.unflatten(0, (halves, -1)).mean(0)
        made = method.plan(TokenView(metric, grid, ages if "ages" in method.needs else None), remove)
        return made.repeat(halves)

    def merge(plan: MergePlan, x: torch.Tensor) -> torch.Tensor:
        return plan.merge(x)

    def unmerge(plan: MergePlan, y: torch.Tensor) -> torch.Tensor:
        return plan.unmerge(y)

    functions: list[Callable[..., Any]] = [plan, merge, unmerge]
    if compiled:
        torch.compiler.reset()
        functions = [torch.compile(f, fullgraph=True, dynamic=False) for f in functions]
    with torch.no_grad():
        made = functions[0](x)
        merged = functions[1](made, x)
        arguments: list[tuple[Any, ...]] = [(x,), (made, x), (made, merged)]
        seconds = [_median(f, a, runs, device) for f, a in zip(functions, arguments, strict=True)]
    return PartTimes(name, tokens, remove, *seconds)


def _median(
    function: Callable[..., Any], arguments: tuple[Any, ...], runs: int, device: torch.device
) -> float:
    function(*arguments)
    times = []
    for _ in range(runs):
        _wait(device)
        start = time.perf_counter()
        function(*arguments)
        _wait(device)
        times.append(time.perf_counter() - start)
    return statistics.median(times)


def _wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
