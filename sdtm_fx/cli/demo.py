"""`sdtm-fx demo`: dense and rewritten images side by side, on a page."""

from __future__ import annotations

import functools
import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.console import Console

from sdtm_fx.cli.bars import counting_bar

if TYPE_CHECKING:
    from sdtm_fx.demo.compare import Comparison


def demo(
    out: Annotated[Path, typer.Option(help="Folder for index.html, the images and report.json.")] = Path(
        "demo_output"
    ),
    steps: Annotated[int, typer.Option(min=1, help="Denoising steps.")] = 20,
    pixels: Annotated[int, typer.Option(min=16, max=96, help="Side of the toys' images; even.")] = 48,
    prompts: Annotated[int, typer.Option(min=1, max=4, help="Number of captions that the toys draw.")] = 4,
    recipe: Annotated[
        list[str] | None, typer.Option(help="Recipe for the SD3 toy, a name or a file; may be repeated.")
    ] = None,
) -> None:
    """Sample the trained toys and the real SD3 and FLUX pipeline classes, dense and rewritten."""
    from transformers.utils import logging

    from sdtm_fx.demo import tasks
    from sdtm_fx.demo.compare import compare
    from sdtm_fx.demo.page import render_page
    from sdtm_fx.demo.report import as_dict, environment, render
    from sdtm_fx.demo.sheet import draw_sheet
    from sdtm_fx.explaining.render import render as render_explanation

    logging.set_verbosity_error()  # its advice on image processors concerns nothing here
    console = Console()
    out.mkdir(parents=True, exist_ok=True)
    comparisons = []
    for task in (
        tasks.trained("sd3", steps, pixels, prompts, recipe or ()),
        tasks.trained("flux", steps, pixels, prompts),
        tasks.random_sd3(steps),
        tasks.random_flux(steps),
    ):
        with counting_bar(task.title, task.draws, console=console) as advance:
            comparison = compare(task, on_image=functools.partial(advance, 1))
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
    page = out / "index.html"
    page.write_text(render_page(comparisons), encoding="utf-8")
    console.print(f"\nall of it on one page: {page}", soft_wrap=True, highlight=False)
    _check(console, comparisons)


def _check(console: Console, comparisons: list[Comparison]) -> None:
    """Fail where a pipeline was not given back, or recording changed an image."""
    outcomes = [(f"{c.task.slug}, {o.recipe}", o) for c in comparisons for o in c.outcomes]
    broken = [name for name, outcome in outcomes if not outcome.restored]
    if broken:
        console.print(f"restore did not give the dense pipeline back: {'; '.join(broken)}", style="red")
    changed = [name for name, outcome in outcomes if not outcome.films_agree]
    if changed:
        console.print(f"recording what merged changed the images: {'; '.join(changed)}", style="red")
    if broken or changed:
        raise typer.Exit(1)
