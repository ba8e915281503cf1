"""``sdtm-fx bench``: how much of the theoretical speedup is measured."""

from __future__ import annotations

import json
import platform
from dataclasses import asdict
from pathlib import Path
from typing import Annotated, Any

import torch
import typer
from rich.console import Console
from rich.progress import Progress
from rich.table import Table

from sdtm_fx.bench.configs import MODELS, BenchModel, bench_model
from sdtm_fx.bench.measure import BenchSetup, StageTiming, bench_stages, break_down
from sdtm_fx.bench.parts import PartTimes, time_parts
from sdtm_fx.bench.schedule import PhaseTiming, ScheduleTiming, bench_schedule
from sdtm_fx.recipe.load import load_recipe
from sdtm_fx.recipe.schema import Recipe

_GROWTH = (512, 768, 1024, 1536, 2048)


def bench(
    model: Annotated[str, typer.Option(help=f"Configuration: {', '.join(MODELS)}.")] = "sd3-medium",
    recipe: Annotated[
        str | None, typer.Option(help="Recipe; by default the one named like the model.")
    ] = None,
    ratio: Annotated[float, typer.Option(help="Fraction of the image tokens removed.")] = 0.47,
    layers: Annotated[int, typer.Option(help="Blocks of each kind; 0 for the whole model.")] = 1,
    height: Annotated[int, typer.Option(help="Image height in pixels.")] = 1024,
    width: Annotated[int, typer.Option(help="Image width in pixels.")] = 1024,
    batch: Annotated[int, typer.Option(help="Images; guidance doubles them.")] = 1,
    dtype: Annotated[str, typer.Option(help="float32, bfloat16 or float16.")] = "float32",
    device: Annotated[str, typer.Option(help="cpu or cuda.")] = "cpu",
    runs: Annotated[int, typer.Option(help="Pairs of runs per stage.")] = 5,
    threads: Annotated[int, typer.Option(help="CPU threads; 0 leaves torch's choice.")] = 0,
    keep_reuse: Annotated[bool, typer.Option(help="Blend with forecasts, as the recipe says.")] = True,
    compile: Annotated[
        bool, typer.Option("--compile", help="Compile both sides, dense and each phase.")
    ] = False,
    mode: Annotated[str | None, typer.Option(help="Mode of torch.compile, such as reduce-overhead.")] = None,
    steps: Annotated[int, typer.Option(help="Time a whole schedule of so many steps too; 0: no.")] = 0,
    parts: Annotated[bool, typer.Option("--parts", help="Break the time of a merged call down.")] = False,
    growth: Annotated[
        bool, typer.Option("--growth", help="Time plan, merge and unmerge from 512 to 2048 px.")
    ] = False,
    out: Annotated[Path | None, typer.Option(help="Also write the result as JSON.")] = None,
) -> None:
    """Time each stage of a recipe against the dense model, in pairs, with random weights."""
    if threads:
        torch.set_num_threads(threads)
    chosen = load_recipe(recipe or model)
    if not keep_reuse:
        chosen = chosen.override(reuse=None)
    setup = BenchSetup(
        ratio=ratio,
        layers=layers or None,
        height=height,
        width=width,
        batch=batch,
        dtype=getattr(torch, dtype),
        device=torch.device(device),
        runs=runs,
        compiled=compile,
        mode=mode,
    )
    size = f"{layers or 'all'} layers, {height} x {width} px, batch {batch}"
    how = f"compiled{f', {mode}' if mode else ''}" if compile else "eager"
    title = f"{model}, {size}, {dtype}, {device}, {how}"
    record = _measure(bench_model(model), chosen, setup, steps, parts, growth, title)
    if out is not None:
        out.write_text(
            json.dumps({**_machine(setup), "recipe": chosen.name, "title": title, **record}, indent=2) + "\n"
        )


def _measure(
    model: BenchModel,
    recipe: Recipe,
    setup: BenchSetup,
    steps: int,
    parts: bool,
    growth: bool,
    title: str,
) -> dict[str, Any]:
    record: dict[str, Any] = {}
    with Progress(transient=True) as progress:
        task = progress.add_task("pairs", total=setup.runs * len(recipe.stages))
        timings = bench_stages(model, recipe, setup, on_run=lambda: progress.advance(task))
        record["stages"] = [_with_ratios(t) for t in timings]
    _print_stages(timings, title)
    if steps:
        with Progress(transient=True) as progress:
            task = progress.add_task("phases", total=None)
            schedule = bench_schedule(model, recipe, setup, steps, on_run=lambda: progress.advance(task))
        record["schedule"] = {
            **_with_ratios(schedule),
            "phases": [_with_ratios(phase) for phase in schedule.phases],
        }
        _print_schedule(schedule, title)
    if parts:
        record["breakdown"] = break_down(model, recipe, setup)
        _print_shares(record["breakdown"], f"{title}: shares of a merged call, run eagerly")
    if parts or growth:
        own = (setup.height, setup.width)
        pixels = [(side, side) for side in _GROWTH] if growth else [own]
        grids = [(height // model.pixels, width // model.pixels) for height, width in pixels]
        times = time_parts(
            recipe, grids, ratio=setup.ratio, width=model.width, batch=setup.batch * model.halves,
            halves=model.halves if "cfg" in recipe.plan.share else 1, dtype=setup.dtype, device=setup.device,
            runs=setup.runs, compiled=setup.compiled,
        )  # fmt: skip
        record["parts"] = [asdict(time) for time in times]
        _print_parts(times, f"{title}: parts of merging, each on its own")
    if setup.device.type == "cuda":
        record["peak_bytes"] = torch.cuda.max_memory_allocated(setup.device)
    return record


def _machine(setup: BenchSetup) -> dict[str, Any]:
    name = torch.cuda.get_device_name(setup.device) if setup.device.type == "cuda" else platform.processor()
    return {"torch": torch.__version__, "python": platform.python_version(), "machine": name,
            "threads": torch.get_num_threads()}  # fmt: skip


def _with_ratios(timing: StageTiming | PhaseTiming | ScheduleTiming) -> dict[str, Any]:
    return {**asdict(timing), "measured": timing.measured, "efficiency": timing.efficiency}


def _print_stages(timings: tuple[StageTiming, ...], title: str) -> None:
    table = Table("stage", "tokens", "theoretical", "measured", "spread", "efficiency", title=title)
    for t in timings:
        table.add_row(
            t.stage, f"{t.tokens} -> {t.kept}", f"{t.theoretical:.2f}x", f"{t.measured:.2f}x",
            f"{min(t.ratios):.2f} to {max(t.ratios):.2f}", f"{t.efficiency:.2f}",
        )  # fmt: skip
    Console().print(table)


def _print_schedule(schedule: ScheduleTiming, title: str) -> None:
    table = Table(
        "phase", "steps", "theoretical", "measured", "spread", "efficiency", "first call", title=title
    )
    for t in schedule.phases:
        table.add_row(
            t.label, str(t.steps), f"{t.theoretical:.2f}x", f"{t.measured:.2f}x",
            f"{min(t.ratios):.2f} to {max(t.ratios):.2f}", f"{t.efficiency:.2f}", f"{t.first_seconds:.1f} s",
        )  # fmt: skip
    table.add_row(
        "all", str(schedule.steps), f"{schedule.theoretical:.2f}x", f"{schedule.measured:.2f}x", "",
        f"{schedule.efficiency:.2f}", "",
    )  # fmt: skip
    Console().print(table)


def _print_shares(shares: dict[str, dict[str, float]], title: str) -> None:
    table = Table("stage", *next(iter(shares.values())), title=title)
    for stage, values in shares.items():
        table.add_row(stage, *(f"{100 * value:.1f} %" for value in values.values()))
    Console().print(table)


def _print_parts(times: tuple[PartTimes, ...], title: str) -> None:
    table = Table("stage", "tokens", "removed", "plan", "merge", "unmerge", title=title)
    for t in times:
        parts = (t.plan_seconds, t.merge_seconds, t.unmerge_seconds)
        table.add_row(t.stage, str(t.tokens), str(t.removed), *(f"{1000 * s:.2f} ms" for s in parts))
    Console().print(table)
