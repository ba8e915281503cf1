"""`sdtm-fx demo`: dense and rewritten images side by side."""

from __future__ import annotations

import functools
import json
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn


def demo(
    out: Annotated[Path, typer.Option(help="Folder for the images and report.json.")] = Path("demo_output"),
    steps: Annotated[int, typer.Option(min=1, help="Denoising steps.")] = 20,
    pixels: Annotated[int, typer.Option(min=16, max=96, help="Side of the toy's images; even.")] = 48,
    prompts: Annotated[int, typer.Option(min=1, max=4, help="Number of captions that the toy draws.")] = 4,
    recipe: Annotated[
        list[str] | None, typer.Option(help="Recipe for the toy, a name or a file; may be repeated.")
    ] = None,
) -> None:
    """Sample a trained toy and the real SD3 and FLUX pipeline classes, dense and rewritten."""
    from transformers.utils import logging

    from sdtm_fx.demo import tasks
    from sdtm_fx.demo.compare import compare
    from sdtm_fx.demo.report import as_dict, environment, render
    from sdtm_fx.demo.sheet import draw_sheet
    from sdtm_fx.explaining.render import render as render_explanation

    logging.set_verbosity_error()  # its advice on image processors concerns nothing here
    console = Console()
    out.mkdir(parents=True, exist_ok=True)
    comparisons = []
    for task in (
        tasks.trained(steps, pixels, prompts, recipe or tasks.TOY_RECIPES),
        tasks.random_sd3(steps),
        tasks.random_flux(steps),
    ):
        columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
        with Progress(*columns, console=console) as progress:
            bar = progress.add_task(task.title, total=len(task.captions) * (1 + len(task.recipes)))
            comparison = compare(task, on_image=functools.partial(progress.advance, bar))
        for outcome in comparison.outcomes:
            console.print(render_explanation(outcome.explanation))
        console.print(render(comparison))
        sheet = out / f"{task.slug}.png"
        draw_sheet(comparison).save(sheet)
        console.print(f"images side by side: {sheet}\n", soft_wrap=True, highlight=False)
        comparisons.append(comparison)
    console.print(environment())
    report = json.dumps([as_dict(c) for c in comparisons], indent=1)
    (out / "report.json").write_text(f"{report}\n", encoding="utf-8")
    broken = [f"{c.task.slug}, {o.recipe}" for c in comparisons for o in c.outcomes if not o.restored]
    if broken:
        console.print(f"restore did not give the dense pipeline back: {'; '.join(broken)}", style="red")
        raise typer.Exit(1)
