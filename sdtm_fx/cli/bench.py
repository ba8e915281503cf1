"""``sdtm-fx bench``: how much of the theoretical speedup is measured."""

from __future__ import annotations

import json
import platform
from dataclasses import asdict
from pathlib import Path
from typing import Annotated

import torch
import typer
from rich.console import Console
from rich.progress import Progress
from rich.table import Table

from sdtm_fx.bench.configs import MODELS, bench_model
from sdtm_fx.bench.measure import BenchSetup, StageTiming, bench_stages
from sdtm_fx.recipe.load import load_recipe


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
    )
    with Progress(transient=True) as progress:
        task = progress.add_task("pairs", total=runs * len(chosen.stages))
        timings = bench_stages(bench_model(model), chosen, setup, on_run=lambda: progress.advance(task))
    size = f"{layers or 'all'} layers, {height} x {width} px, batch {batch}"
    _print(timings, f"{model}, {size}, {dtype}, {device}, eager")
    if out is not None:
        record = {
            "torch": torch.__version__,
            "python": platform.python_version(),
            "machine": platform.processor(),
        }
        stages = [{**asdict(t), "measured": t.measured, "efficiency": t.efficiency} for t in timings]
        out.write_text(json.dumps({**record, "recipe": chosen.name, "stages": stages}, indent=2) + "\n")


def _print(timings: tuple[StageTiming, ...], title: str) -> None:
    table = Table("stage", "tokens", "theoretical", "measured", "spread", "efficiency", title=title)
    for t in timings:
        table.add_row(
            t.stage, f"{t.tokens} -> {t.kept}", f"{t.theoretical:.2f}x", f"{t.measured:.2f}x",
            f"{min(t.ratios):.2f} to {max(t.ratios):.2f}", f"{t.efficiency:.2f}",
        )  # fmt: skip
    Console().print(table)
