"""Timing the stages of a recipe against the dense model, in pairs."""

from __future__ import annotations

import copy
import statistics
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch

from sdtm_fx.bench.configs import BenchModel, build
from sdtm_fx.capture.example import ExampleSize, example_call
from sdtm_fx.explaining.explain import explain
from sdtm_fx.explaining.report import Explanation, PhaseReport
from sdtm_fx.recipe.schema import Recipe
from sdtm_fx.rewrite import rewrite, steps


@dataclass(frozen=True)
class StageTiming:
    """One stage against dense.

    Attributes:
        stage: Name of the stage.
        tokens: Image tokens before.
        kept: Image tokens at merged sites.
        theoretical: Dense MACs over merged MACs, attention counted.
        ratios: Dense time over merged time, one per pair of runs.
        dense_seconds: Median time of a dense call.
        merged_seconds: Median time of a merged call.
    """

    stage: str
    tokens: int
    kept: int
    theoretical: float
    ratios: tuple[float, ...]
    dense_seconds: float
    merged_seconds: float

    @property
    def measured(self) -> float:
        """Median of the paired ratios."""
        return statistics.median(self.ratios)

    @property
    def efficiency(self) -> float:
        """Measured speedup over theoretical speedup."""
        return self.measured / self.theoretical


@dataclass(frozen=True)
class BenchSetup:
    """What to measure.

    Attributes:
        ratio: Fraction of the image tokens removed.
        layers: Blocks of each kind; None for the whole model.
        height: Pixels of the image.
        width: Pixels of the image.
        batch: Images; CFG halves come on top.
        dtype: Of weights and activations.
        device: Where to run.
        runs: Pairs of runs per stage.
    """

    ratio: float
    layers: int | None
    height: int
    width: int
    batch: int
    dtype: torch.dtype
    device: torch.device
    runs: int


def bench_stages(
    model: BenchModel, recipe: Recipe, setup: BenchSetup, on_run: Callable[[], None] = lambda: None
) -> tuple[StageTiming, ...]:
    """Time every stage of a recipe at one constant ratio, each merged call paired with a dense one.

    Args:
        model: What to build, with random weights.
        recipe: The recipe; its ratio curve is replaced, its regular dense steps are left out.
        setup: Sizes and numbers.
        on_run: Called after each pair, for progress bars.

    Raises:
        ScheduleError: The recipe cannot remove the ratio at this size.
    """
    merged = build(model, setup.layers, setup.dtype, setup.device)
    dense = copy.deepcopy(merged, {id(t): t for t in [*merged.parameters(), *merged.buffers()]})
    flat = _at_one_ratio(recipe, setup.ratio)
    rewrite(merged, flat)
    grid = (setup.height // model.pixels, setup.width // model.pixels)
    size = ExampleSize(setup.batch * model.halves, model.text, grid)
    arguments = _noise(example_call(merged, flat, size))
    count = _steps_for(flat, setup.runs)
    report = explain(merged, steps=count, grid=grid, batch=size.batch, text=size.text, quiet=True)
    timings = []
    with torch.no_grad(), steps(merged, count, cfg_halves=model.halves) as clock:
        for _ in range(2):  # the dense steps that features are stored in
            merged(**arguments)
            clock.advance()
        for phase in report.phases[1:]:
            clock.step = phase.steps[0]
            pairs = [_pair(dense, merged, arguments, setup.device)]  # warm-up
            for _ in range(setup.runs):
                clock.advance()
                pairs.append(_pair(dense, merged, arguments, setup.device))
                on_run()
            timings.append(_timing(report, phase, pairs[1:]))
    return tuple(timings)


def _at_one_ratio(recipe: Recipe, ratio: float) -> Recipe:
    return recipe.override(
        {
            "ratio": {"curve": "constant", "start": ratio},
            "stages.*.ratio": None,
            "sites.*.expect": None,
            "keep_dense": {"first_steps": 2, "last_steps": 0, "every_steps": None, "layers": []},
        }
    )


def _steps_for(recipe: Recipe, runs: int) -> int:
    """Enough denoising steps for a warm-up and `runs` pairs in the shortest stage."""
    ends = [stage.until for stage in recipe.stages]
    share = min(end - start for start, end in zip([0.0, *ends], ends, strict=False))
    return int((runs + 4) / share) + 1


def _timing(report: Explanation, phase: PhaseReport, pairs: list[tuple[float, float]]) -> StageTiming:
    tokens = report.grid[0] * report.grid[1]
    return StageTiming(
        stage=phase.label,
        tokens=tokens,
        kept=tokens - phase.removed,
        theoretical=report.dense.total / phase.macs.total,
        ratios=tuple(dense / merged for dense, merged in pairs),
        dense_seconds=statistics.median(dense for dense, _ in pairs),
        merged_seconds=statistics.median(merged for _, merged in pairs),
    )


def _noise(arguments: Mapping[str, Any]) -> dict[str, Any]:
    """Put seeded noise into the latent and the embeddings; ids and times stay."""
    generator = torch.Generator().manual_seed(0)

    def fill(value: Any) -> Any:
        if isinstance(value, torch.Tensor) and value.ndim >= 3:
            noise = torch.randn(value.shape, generator=generator, dtype=torch.float32)
            return noise.to(value.dtype).to(value.device)
        return value

    return {name: fill(value) for name, value in arguments.items()}


def _pair(
    dense: torch.nn.Module, merged: torch.nn.Module, arguments: Mapping[str, Any], device: torch.device
) -> tuple[float, float]:
    return _seconds(dense, arguments, device), _seconds(merged, arguments, device)


def _seconds(model: torch.nn.Module, arguments: Mapping[str, Any], device: torch.device) -> float:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    start = time.perf_counter()
    model(**arguments)
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter() - start
