"""`sdtm-fx eval`: what recipes do to the images of a model, measured against its dense images."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

if TYPE_CHECKING:
    from rich.console import Console

    from sdtm_fx.evaluate import Evaluation, Judge, Row, Sampling
    from sdtm_fx.evaluate.models import ModelSource
    from sdtm_fx.evaluate.study import Study


def evaluate(
    model: Annotated[
        str | None,
        typer.Option(
            show_default="toy-sd3", help="toy-sd3, toy-flux, or the folder of a diffusers checkpoint."
        ),
    ] = None,
    recipe: Annotated[
        list[str] | None,
        typer.Option(help="Recipe, a name or a file; may be repeated. Dense is always a row."),
    ] = None,
    study: Annotated[
        str | None,
        typer.Option(help="Rows and defaults from a study, a shipped name or a file; --recipe adds rows."),
    ] = None,
    only: Annotated[
        list[str] | None,
        typer.Option(help="Rows of the study by label, with * and ?; may be repeated. `tables` joins parts."),
    ] = None,
    prompts: Annotated[
        Path | None, typer.Option(help="Prompts, one a line; toys have captions of held-out scenes.")
    ] = None,
    images: Annotated[
        int | None,
        typer.Option(min=1, show_default="64", help="Images a row that are compared with dense ones."),
    ] = None,
    judge_images: Annotated[
        int | None,
        typer.Option(
            min=0,
            show_default="as --images",
            help="Images a row that the judge of the toys sees; 0 for none.",
        ),
    ] = None,
    steps: Annotated[int | None, typer.Option(min=1, show_default="28", help="Denoising steps.")] = None,
    height: Annotated[int | None, typer.Option(min=1, show_default="64", help="Pixels.")] = None,
    width: Annotated[int | None, typer.Option(min=1, show_default="64", help="Pixels.")] = None,
    guidance: Annotated[
        float | None, typer.Option(show_default="that of the pipeline", help="Guidance scale.")
    ] = None,
    batch: Annotated[int, typer.Option(min=1, help="Images per call of the pipeline.")] = 4,
    seed: Annotated[int, typer.Option(min=0, help="Of the first image; the others follow.")] = 0,
    out: Annotated[
        Path,
        typer.Option(help="Folder for results, and for what was drawn: an interrupted run goes on from it."),
    ] = Path("eval_output"),
    json_file: Annotated[
        Path | None, typer.Option("--json", help="Write the data to this file as well.")
    ] = None,
    fresh: Annotated[bool, typer.Option("--fresh", help="Draw everything again.")] = False,
    threads: Annotated[
        int, typer.Option(min=1, help="CPU threads of each process; the last bits depend on it.")
    ] = 1,
    processes: Annotated[int, typer.Option(min=1, help="Processes; results do not depend on it.")] = 1,
    dtype: Annotated[str, typer.Option(help="float32, bfloat16 or float16.")] = "float32",
    device: Annotated[str, typer.Option(help="cpu or cuda.")] = "cpu",
) -> None:
    """Sample a model dense and under recipes, with equal seeds: tables, data, a figure and a contact sheet."""
    from rich.console import Console

    from sdtm_fx.evaluate.drawing import check_pipeline
    from sdtm_fx.evaluate.drawing import threads as on_threads
    from sdtm_fx.evaluate.harness import measure
    from sdtm_fx.evaluate.identity import identity
    from sdtm_fx.evaluate.models import ModelSource, choose_prompts, real_scenes
    from sdtm_fx.evaluate.report import render
    from sdtm_fx.evaluate.sampling import Sampling
    from sdtm_fx.evaluate.store import Store

    console, loaded = Console(), _study(study, recipe, only)
    given = None if loaded is None else loaded.spec.defaults
    source = ModelSource(model or ("toy-sd3" if loaded is None else loaded.spec.model), dtype, device)
    paired = images or (64 if given is None else given.images)
    wanted = given.judged if given is not None and judge_images is None else judge_images
    judge = _judge(source, wanted)
    judged = 0 if judge is None else paired if wanted is None else wanted
    _warn_early(console, judge, judged)
    count = max(paired, judged)
    sampling = Sampling(
        prompts=choose_prompts(source, prompts, count, seed),
        seeds=tuple(range(seed, seed + count)),
        steps=steps or (28 if given is None else given.steps),
        height=height or (64 if given is None else given.height),
        width=width or (64 if given is None else given.width),
        guidance_scale=guidance,
        batch=batch,
        paired=paired,
        judged=judged,
    )
    with on_threads(threads):
        pipeline = source.load()
        check_pipeline(pipeline)
        rows, left_out = _rows(console, source, pipeline, recipe or [], loaded, sampling)
        store = Store(identity(pipeline), out / "batches")
        if fresh:
            store.clear()
        _draw(console, source, pipeline, rows, sampling, store, out / "batches", processes)
        reference = None if judge is None else real_scenes(2 * judged, sampling.height, sampling.width)
        found = measure(rows, sampling, store, judge=judge, reference=reference)
    console.print(render(found))
    asked = {"recipes": recipe or [], "study": study, "only": only or []}
    settings = {"model": source.name, **asked, "left_out": left_out}
    _write(console, found, out, json_file, settings)


def _study(study: str | None, recipes: Sequence[str] | None, only: Sequence[str] | None) -> Study | None:
    """The study, or None where recipes alone make the rows."""
    from sdtm_fx.errors import SdtmFxError

    if study is not None:
        from sdtm_fx.evaluate.study import load_study

        loaded = load_study(study)
        return loaded.only(only) if only else loaded
    if only:
        raise SdtmFxError("eval: --only chooses rows of a study; give --study")
    if not recipes:
        raise SdtmFxError("eval: nothing to compare; give --recipe, which may be repeated, or --study")
    return None


def _judge(source: ModelSource, wanted: int | None) -> Judge | None:
    """The judge of the toys, unless none is wanted; other models have none."""
    from sdtm_fx.errors import SdtmFxError
    from sdtm_fx.toy.judge import load_judge

    if source.is_toy:
        return None if wanted == 0 else load_judge()
    if wanted:
        raise SdtmFxError(
            f"eval: the judge knows the scenes of the toys only; --judge-images must be 0 for {source.name}"
        )
    return None


def _warn_early(console: Console, judge: Judge | None, judged: int) -> None:
    """Say before hours of drawing what the judge will not be able to say."""
    import torch

    from sdtm_fx.evaluate.judging import judge_features, too_few

    if judge is None or not judged:
        return
    missing = too_few(judged, judge_features(judge, torch.zeros(1, 3, 32, 32)).shape[1])
    if missing is not None:
        console.print(f"no Fréchet distances: {missing} (--judge-images)", style="yellow", highlight=False)


def _rows(
    console: Console,
    source: ModelSource,
    pipeline: Any,
    recipes: Sequence[str],
    study: Study | None,
    sampling: Sampling,
) -> tuple[tuple[Row, ...], list[dict[str, str]]]:
    """Dense, the rows of the study, and the recipes; and what of the study is left out."""
    from dataclasses import asdict

    from sdtm_fx.evaluate.row import Row, check_rows
    from sdtm_fx.evaluate.variant import variant
    from sdtm_fx.recipe.load import load_recipe

    rows: list[Row] = []
    left_out: list[dict[str, str]] = []
    if study is not None:
        with console.status("rows of the study") as status:
            planned = study.plan(
                pipeline,
                steps=sampling.steps,
                height=sampling.height,
                width=sampling.width,
                guidance_scale=sampling.guidance_scale,
                prompts=sampling.prompts[: sampling.batch],
                on_row=lambda label: status.update(f"rows of the study: {label}"),
            )
        for skipped in planned.skipped:
            left_out.append(asdict(skipped))
            console.print(f"left out: {skipped.label}: {skipped.reason}", style="yellow", highlight=False)
        rows += planned.rows
    for name in recipes:
        recipe = load_recipe(name)
        if source.is_toy:
            recipe = recipe.override(
                {"sites.*.expect": None}
            )  # a toy has fewer blocks than what it stands for
        rows.append(Row(recipe.name, recipe.name, recipe))
    if all(variant(row) is not None for row in rows):
        rows.insert(0, Row("dense", "dense", None))
    check_rows(rows)
    return tuple(rows), left_out


def _draw(
    console: Console,
    source: ModelSource,
    pipeline: Any,
    rows: tuple[Row, ...],
    sampling: Sampling,
    store: Any,
    folder: Path,
    processes: int,
) -> None:
    """Draw with a progress bar."""
    from sdtm_fx.cli.bars import counting_bar
    from sdtm_fx.evaluate.drawing import draw, images_to_draw
    from sdtm_fx.evaluate.parallel import draw_in_processes

    with counting_bar("images", images_to_draw(rows, sampling), console=console) as advance:
        if processes == 1:
            draw(pipeline, rows, sampling, store, on_image=advance)
        else:
            draw_in_processes(
                source, rows, sampling, store.identity, folder, processes=processes, on_image=advance
            )


def _write(
    console: Console, found: Evaluation, out: Path, json_file: Path | None, settings: dict[str, Any]
) -> None:
    """Write data, figure and contact sheet."""
    from sdtm_fx.evaluate.figure import draw_figure
    from sdtm_fx.evaluate.report import as_dict, to_json
    from sdtm_fx.evaluate.sheet import draw_sheet

    text = to_json(as_dict(found, settings))
    data = [out / "evaluation.json", *([] if json_file is None else [json_file])]
    for path in data:
        path.write_text(text, encoding="utf-8")
    draw_figure(found, out / "quality.png")
    draw_sheet(found).save(out / "images.png")
    console.print(
        f"data: {', '.join(map(str, data))}; figure: {out / 'quality.png'}; first images: {out / 'images.png'}",
        soft_wrap=True,
        highlight=False,
    )
