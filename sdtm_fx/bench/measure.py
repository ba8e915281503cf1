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


def bench_stages(
    model: BenchModel,
    recipe: Recipe,
    *,
    ratio: float,
    layers: int | None,
    height: int,
    width: int,
    batch: int,
    dtype: torch.dtype,
    device: torch.device,
    runs: int,
    on_run: Callable[[], None] = lambda: None,
) -> tuple[StageTiming, ...]:
    """Time every stage of a recipe at one constant ratio, each merged call paired with a dense one.

    Args:
        model: What to build, with random weights.
        recipe: The recipe; its ratio curve is replaced by `ratio`, its regular dense steps are left out.
        ratio: Fraction of the image tokens removed.
        layers: Blocks of each kind; None for the whole model.
        height: Pixels of the image.
        width: Pixels of the image.
        batch: Images; CFG halves come on top.
        dtype: Of weights and activations.
        device: Where to run.
        runs: Pairs per stage.
        on_run: Called after each pair, for progress bars.

    Raises:
        ScheduleError: The recipe cannot remove `ratio` at this size.
    """
    merged = build(model, layers, dtype, device)
    dense = copy.deepcopy(merged, {id(t): t for t in [*merged.parameters(), *merged.buffers()]})
    size = ExampleSize(batch * model.halves, model.text, (height // model.pixels, width // model.pixels))
    flat = recipe.override(
        {
            "ratio": {"curve": "constant", "start": ratio},
            "stages.*.ratio": None,
            "sites.*.expect": None,
            "keep_dense": {"first_steps": 2, "last_steps": 0, "every_steps": None, "layers": []},
        }
    )
    rewrite(merged, flat)
    arguments = _noise(example_call(merged, flat, size))
    ends = [stage.until for stage in flat.stages]
    share = min(end - start for start, end in zip([0.0, *ends], ends, strict=False))
    count = int((runs + 4) / share) + 1
    report = explain(merged, steps=count, grid=size.grid, batch=size.batch, text=size.text, quiet=True)
    timings = []
    with torch.no_grad(), steps(merged, count, cfg_halves=model.halves) as clock:
        for _ in range(2):  # the dense steps that features are stored in
            merged(**arguments)
            clock.advance()
        for phase in report.phases[1:]:
            dense_times, merged_times = [], []
            clock.step = phase.steps[0]
            _seconds(merged, arguments, device)
            _seconds(dense, arguments, device)
            for _ in range(runs):
                clock.advance()
                dense_times.append(_seconds(dense, arguments, device))
                merged_times.append(_seconds(merged, arguments, device))
                on_run()
            timings.append(
                StageTiming(
                    stage=phase.label,
                    tokens=size.grid[0] * size.grid[1],
                    kept=size.grid[0] * size.grid[1] - phase.removed,
                    theoretical=report.dense.total / phase.macs.total,
                    ratios=tuple(d / m for d, m in zip(dense_times, merged_times, strict=True)),
                    dense_seconds=statistics.median(dense_times),
                    merged_seconds=statistics.median(merged_times),
                )
            )
    return tuple(timings)


def _noise(arguments: Mapping[str, Any]) -> dict[str, Any]:
    """Put seeded noise into the latent and the embeddings; ids and times stay."""
    generator = torch.Generator().manual_seed(0)

    def fill(value: Any) -> Any:
        if isinstance(value, torch.Tensor) and value.ndim >= 3:
            noise = torch.randn(value.shape, generator=generator, dtype=torch.float32)
            return noise.to(value.dtype).to(value.device)
        return value

    return {name: fill(value) for name, value in arguments.items()}


def _seconds(model: torch.nn.Module, arguments: Mapping[str, Any], device: torch.device) -> float:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    start = time.perf_counter()
    model(**arguments)
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter() - start
