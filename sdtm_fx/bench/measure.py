"""Timing the stages of a recipe against the dense model, in pairs."""

from __future__ import annotations

import copy
import statistics
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import torch

from sdtm_fx.bench.breakdown import breakdown
from sdtm_fx.bench.configs import BenchModel, build
from sdtm_fx.capture.example import ExampleSize, example_call
from sdtm_fx.compiling.compile import compile
from sdtm_fx.explaining.explain import explain
from sdtm_fx.explaining.report import Explanation, PhaseReport
from sdtm_fx.recipe.schema import Recipe
from sdtm_fx.rewrite import rewrite, steps
from sdtm_fx.rewriting.rewriting import rewriting_of


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
        compiled: Compile both: the dense model whole, the merged one phase by phase.
        mode: Of torch.compile, for both.
    """

    ratio: float
    layers: int | None
    height: int
    width: int
    batch: int
    dtype: torch.dtype
    device: torch.device
    runs: int
    compiled: bool = False
    mode: str | None = None


@dataclass(frozen=True)
class Pairing:
    """A dense and a merged model on the same weights, ready to be timed.

    Attributes:
        dense: The dense model, compiled where the setup says so.
        merged: The merged one, alike.
        arguments: Arguments of a call.
        size: Their size.
        device: Where both run.
    """

    dense: Callable[..., Any]
    merged: torch.nn.Module
    arguments: Mapping[str, Any]
    size: ExampleSize
    device: torch.device

    def time_pair(self) -> tuple[float, float]:
        """Seconds of a dense call and of a merged one right after it."""
        return _seconds(self.dense, self.arguments, self.device), _seconds(
            self.merged, self.arguments, self.device
        )


def pair_of_models(model: BenchModel, recipe: Recipe, setup: BenchSetup) -> Pairing:
    """Build a model, and rewrite a copy that shares its weights."""
    merged = build(model, setup.layers, setup.dtype, setup.device)
    dense: Any = copy.deepcopy(merged, {id(t): t for t in [*merged.parameters(), *merged.buffers()]})
    rewrite(merged, recipe)
    grid = (setup.height // model.pixels, setup.width // model.pixels)
    size = ExampleSize(setup.batch * model.halves, model.text, grid)
    arguments = _noise(example_call(merged, recipe, size))
    if setup.compiled:
        torch.compiler.reset()
        compile(merged, mode=setup.mode, dynamic=False)
        dense = torch.compile(dense, mode=setup.mode, dynamic=False, fullgraph=True)
    return Pairing(dense, merged, arguments, size, setup.device)


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
    flat = _at_one_ratio(recipe, setup.ratio)
    pairing = pair_of_models(model, flat, setup)
    merged, arguments, size = pairing.merged, pairing.arguments, pairing.size
    count = _steps_for(flat, setup.runs)
    report = explain(merged, steps=count, grid=size.grid, batch=size.batch, text=size.text, quiet=True)
    timings = []
    with torch.no_grad(), steps(merged, count, cfg_halves=model.halves) as clock:
        for _ in range(2):  # the dense steps that features are stored in
            merged(**arguments)
            clock.advance()
        for phase in report.phases[1:]:
            clock.step = phase.steps[0]
            pairs = [pairing.time_pair()]  # warm-up
            for _ in range(setup.runs):
                clock.advance()
                pairs.append(pairing.time_pair())
                on_run()
            timings.append(_timing(report, phase, pairs[1:]))
    return tuple(timings)


def _at_one_ratio(recipe: Recipe, ratio: float) -> Recipe:
    return recipe.override(
        {
            "ratio": {"curve": "constant", "start": ratio},
            "stages.*.ratio": None,
            "sites.*.expect": None,
            "gate": "off",
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


def _seconds(model: Callable[..., Any], arguments: Mapping[str, Any], device: torch.device) -> float:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    start = time.perf_counter()
    model(**arguments)
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter() - start


def break_down(model: BenchModel, recipe: Recipe, setup: BenchSetup) -> dict[str, dict[str, float]]:
    """Share of plan, merge, unmerge, features and the rest in a merged call of each stage, run eagerly.

    Args:
        model: What to build, with random weights.
        recipe: The recipe; its ratio curve is replaced, its regular dense steps are left out.
        setup: Sizes and numbers.
    """
    flat = _at_one_ratio(recipe, setup.ratio)
    pairing = pair_of_models(model, flat, replace(setup, compiled=False))
    rewriting = rewriting_of(pairing.merged)
    assert rewriting is not None
    count = _steps_for(flat, 4)
    shares: dict[str, dict[str, float]] = {}
    with torch.no_grad(), steps(pairing.merged, count, cfg_halves=model.halves) as clock:
        for _ in range(2):
            pairing.merged(**pairing.arguments)
            clock.advance()
        schedule = rewriting.runtime.schedule(count, pairing.size.grid, pairing.size.text, pairing.size.batch)
        for step in range(2, count):
            phase = schedule.phase(step)
            name = "dense" if phase.stage is None else flat.stages[phase.stage].name
            if name in shares or phase.stage is None:
                continue
            clock.step = step
            run = partial(pairing.merged, **pairing.arguments)
            shares[name] = breakdown(rewriting, run, setup.device)
    return shares
