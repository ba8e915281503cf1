"""`sdtm-fx tune`: search for the best recipe at a budget, and write it."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from rich.table import Table

    from sdtm_fx.tuning import Tuned


def tune(
    speedup: Annotated[float, typer.Option(help="Dense over total MACs of a generation, at least.")],
    out: Annotated[Path, typer.Option("--out", "-o", help="Where the recipe is written.")],
    model: Annotated[
        str, typer.Option(help="toy-sd3, toy-flux, or the folder of a diffusers checkpoint.")
    ] = "toy-sd3",
    recipe: Annotated[
        list[str] | None,
        typer.Option(
            show_default="of a toy, what merges and what forecasts: toy-sd3-merge and toy-sd3",
            help="Recipe whose sites and methods are searched, a name or a file; once for each.",
        ),
    ] = None,
    against: Annotated[
        list[str] | None,
        typer.Option(help="Recipe to compare with on held-out images, at the budget; once for each."),
    ] = None,
    steps: Annotated[int, typer.Option(min=1, help="Denoising steps; the recipe is for this number.")] = 28,
    height: Annotated[int, typer.Option(min=1, help="Pixels.")] = 64,
    width: Annotated[int, typer.Option(min=1, help="Pixels.")] = 64,
    guidance: Annotated[
        float | None, typer.Option(show_default="that of the pipeline", help="Guidance scale.")
    ] = None,
    prompts: Annotated[
        Path | None, typer.Option(help="Prompts, one a line; toys have captions of held-out scenes.")
    ] = None,
    quality: Annotated[
        str, typer.Option(help="What is searched for: psnr or ssim, to the dense image.")
    ] = "psnr",
    images: Annotated[int, typer.Option(min=1, help="Images of each trial.")] = 4,
    chosen: Annotated[int, typer.Option(min=1, help="Fresh images that the best trials are chosen by.")] = 16,
    held_out: Annotated[int, typer.Option(min=1, help="Images of the last comparison alone.")] = 32,
    trials: Annotated[int, typer.Option(min=1, help="Trials at most.")] = 200,
    minutes: Annotated[
        float | None, typer.Option(show_default="no limit", help="No trial begins after so many.")
    ] = None,
    seed: Annotated[int, typer.Option(min=0, help="Of the order in which changes are tried.")] = 0,
    processes: Annotated[int, typer.Option(min=1, help="Processes that draw.")] = 1,
    threads: Annotated[int, typer.Option(min=1, help="CPU threads of each process.")] = 1,
    dtype: Annotated[str, typer.Option(help="float32, bfloat16 or float16.")] = "float32",
    device: Annotated[str, typer.Option(help="cpu or cuda.")] = "cpu",
    json_file: Annotated[Path | None, typer.Option("--json", help="Write every trial to this file.")] = None,
) -> None:
    """Search the scale from dense through merging to forecast, by images, and write the best recipe."""
    import sys
    from typing import cast

    from rich.console import Console

    from sdtm_fx.cli.bars import counting_bars
    from sdtm_fx.errors import SdtmFxError, nearest
    from sdtm_fx.evaluate.models import ModelSource
    from sdtm_fx.evaluate.report import to_json
    from sdtm_fx.recipe.extend import path_beside
    from sdtm_fx.recipe.load import load_recipe
    from sdtm_fx.tuning import Goal
    from sdtm_fx.tuning import tune as search
    from sdtm_fx.tuning.measuring import Quality
    from sdtm_fx.tuning.writing import as_data, recipe_text

    if quality not in ("psnr", "ssim"):
        raise SdtmFxError(
            f"tune: no quality {quality!r}{nearest(quality, ['psnr', 'ssim'])}; accepted: psnr, ssim"
        )
    source = ModelSource(model, dtype, device)
    if not recipe and not source.is_toy:
        raise SdtmFxError(f"tune: {model} is no toy; name the recipe whose sites are searched (--recipe)")
    named = recipe or [f"{model}-merge", model]  # what merges, and what forecasts all blocks as one
    bases, others = [load_recipe(name) for name in named], [load_recipe(name) for name in against or ()]
    goal = Goal(
        name=out.stem, speedup=speedup, steps=steps, height=height, width=width, guidance=guidance,
        quality=cast(Quality, quality), images=images, chosen=chosen, held_out=held_out, trials=trials,
        minutes=minutes, processes=processes, threads=threads, seed=seed, prompts=prompts,
    )  # fmt: skip
    console = Console()
    with counting_bars(console) as count:
        found = search(
            source, bases, goal, against=others, on_glance=lambda start, of: count("starting points", of),
            on_trial=lambda trial, best: count("trials", trials),
            on_sensitivity=lambda sensitivity: count("trials", trials),
        )  # fmt: skip
    chosen_name, base = named[found.setting.base], bases[found.setting.base]
    loose = source.is_toy and any(site.expect is not None for site in base.sites)
    extends = path_beside(Path(chosen_name), out.parent) if Path(chosen_name).is_file() else chosen_name
    command = " ".join(["sdtm-fx", *sys.argv[1:]])
    written = recipe_text(found, base, extends, command, loose=loose)
    out.write_text(written, encoding="utf-8")
    if json_file is not None:
        json_file.write_text(
            to_json(as_data(found, model=model, command=command, written=written)), encoding="utf-8"
        )
    for table in (_sensitivities(found), _table(found)):
        if table.row_count:
            console.print(table)
    for reason in found.left_out:
        console.print(f"not compared: {reason}", highlight=False, soft_wrap=True)
    console.print(
        f"recipe: {out}; {len(found.trials)} trials, chosen after {found.chosen_after / 60:.1f} min, compared after "
        f"{found.seconds / 60:.1f} min",
        highlight=False,
        soft_wrap=True,
    )


def _sensitivities(found: Tuned) -> Table:
    """What each part of the best starting point gives when it alone is computed whole."""
    from rich.table import Table

    table = Table(title="what computing a part whole gives, at the best starting point")
    for column in ("part", f"{found.goal.quality} gained", "of dense MACs", "gained for each percent"):
        table.add_column(column)
    for one in found.sensitivities:
        table.add_row(one.part.label, f"{one.gain:+.2f}", f"{one.share:.2%}", f"{one.rate:+.3f}")
    return table


def _table(found: Tuned) -> Table:
    """The tuned recipe beside the best starting points, on held-out images."""
    from rich.table import Table

    from sdtm_fx.tuning.writing import told

    table = Table(title=f"{found.goal.quality} on {found.goal.held_out} held-out images, 95 % intervals")
    for column in ("setting", "kind", "speedup by MACs", found.goal.quality, "tuned is ahead by"):
        table.add_column(column)
    best = found.tuned
    table.add_row(best.label, best.family, f"{best.speedup:.2f}x", told(best.estimate), "")
    for rival in found.rivals:
        ahead = told(best.ahead_of(rival))
        table.add_row(rival.label, rival.family, f"{rival.speedup:.2f}x", told(rival.estimate), ahead)
    return table
