"""One benchmark from beginning to end: what is wanted is measured, shown and collected, one thing after another."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.progress import Progress

from sdtm_fx.bench import report
from sdtm_fx.bench.compare import compare_recipes, compared_stages
from sdtm_fx.bench.configs import BenchModel
from sdtm_fx.bench.depth import time_depths
from sdtm_fx.bench.figure import draw_growth
from sdtm_fx.bench.growth import growth_of
from sdtm_fx.bench.measure import StageTiming, bench_stages, break_down
from sdtm_fx.bench.pairing import BenchSetup
from sdtm_fx.bench.parts import plan_shares, time_parts
from sdtm_fx.bench.schedule import bench_schedule
from sdtm_fx.recipe.schema import Recipe

PIXELS = (512, 768, 1024, 1536, 2048)
"""Sides of the square images that growth is measured at."""

DEPTHS = (2, 4, 8, 16)
"""Blocks of each kind that `rewrite` is timed at."""


@dataclass(frozen=True)
class Wanted:
    """What is measured beside the stages.

    Attributes:
        steps: Denoising steps of a whole schedule; 0 for none.
        parts: The parts of a merged call.
        growth: How the parts grow with the tokens, and `rewrite` with the depth.
        figure: Where growth is drawn; None for nowhere.
    """

    steps: int = 0
    parts: bool = False
    growth: bool = False
    figure: Path | None = None


def run_bench(
    model: BenchModel, recipe: Recipe, setup: BenchSetup, wanted: Wanted, title: str
) -> dict[str, Any]:
    """Measure, and print each table as soon as it is there.

    Args:
        model: What to build, with random weights.
        recipe: The recipe.
        setup: Sizes and numbers.
        wanted: What to measure beside the stages.
        title: Of tables and figure.

    Returns:
        Everything as plain data.
    """
    console = Console()
    record: dict[str, Any] = {}
    with _bar("pairs", setup.runs * len(recipe.stages)) as advance:
        stages = bench_stages(model, recipe, setup, advance)
    record["stages"] = [report.as_data(timing) for timing in stages]
    console.print(report.stage_table(stages, title))
    if wanted.steps:
        with _bar("phases", None) as advance:
            schedule = bench_schedule(model, recipe, setup, wanted.steps, advance)
        record["schedule"] = report.as_data(schedule)
        console.print(report.schedule_table(schedule, title))
    if wanted.parts:
        record |= _run_parts(model, recipe, setup, stages, title, console)
    if wanted.growth:
        record["growth"] = _run_growth(model, recipe, setup, wanted.figure, title, console)
        with _bar("depths", len(DEPTHS)) as advance:
            depths = time_depths(model, recipe, DEPTHS, advance)
        record["depths"] = [{**asdict(d), "rest_seconds": d.rest_seconds} for d in depths]
        console.print(report.depth_table(depths, f"{title}: rewrite against the number of blocks"))
    return record


def run_comparison(
    model: BenchModel, recipes: Sequence[Recipe], setup: BenchSetup, title: str
) -> dict[str, Any]:
    """Measure recipes beside each other, and print the table.

    Args:
        model: What to build, with random weights.
        recipes: The recipes.
        setup: Sizes and numbers.
        title: Of the table.

    Returns:
        Everything as plain data.
    """
    with _bar("triples", setup.runs * compared_stages(recipes)) as advance:
        found = compare_recipes(model, recipes, setup, advance)
    Console().print(report.contender_table(found, title))
    return {"compared": [report.contender_as_data(contender) for contender in found]}


def _run_parts(
    model: BenchModel,
    recipe: Recipe,
    setup: BenchSetup,
    stages: tuple[StageTiming, ...],
    title: str,
    console: Console,
) -> dict[str, Any]:
    shares = break_down(model, recipe, setup)
    console.print(report.share_table(shares, f"{title}: shares of a merged call, run eagerly"))
    times = time_parts(model, recipe, setup, [setup.grid])
    console.print(report.part_table(times, f"{title}: parts of merging, each on its own"))
    plans = plan_shares(stages, times)
    console.print(report.plan_table(plans, f"{title}: finding what to merge, in a merged call"))
    return {
        "breakdown": shares,
        "parts": [asdict(time) for time in times],
        "plan_shares": [{**asdict(plan), "share": plan.share} for plan in plans],
    }


def _run_growth(
    model: BenchModel, recipe: Recipe, setup: BenchSetup, figure: Path | None, title: str, console: Console
) -> dict[str, Any]:
    grids = [(side // model.pixels, side // model.pixels) for side in PIXELS]
    with _bar("sizes", len(grids) * len(recipe.stages)) as advance:
        times = time_parts(model, recipe, setup, grids, advance)
    growths = growth_of(times)
    console.print(report.part_table(times, f"{title}: parts of merging against tokens"))
    console.print(report.growth_table(growths, f"{title}: growth with the number of tokens"))
    if figure is not None:
        draw_growth(growths, f"{title}\nat {PIXELS[0]} to {PIXELS[-1]} px", figure)
        console.print(f"figure: {figure}")
    return {
        "parts": [asdict(time) for time in times],
        "fits": [{**asdict(growth), "is_linear": growth.is_linear} for growth in growths],
    }


@contextlib.contextmanager
def _bar(name: str, total: int | None) -> Iterator[Callable[[], None]]:
    with Progress(transient=True) as progress:
        task = progress.add_task(name, total=total)
        yield lambda: progress.advance(task)
