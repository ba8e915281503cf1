"""`sdtm-fx toy train`, `export` and `judge`: from scenes to the weights that the package carries."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from sdtm_fx.cli.bars import counting_bar, training_bar
from sdtm_fx.cli.toy_look import grades_as_dict, print_grades, say, write_json

if TYPE_CHECKING:
    from sdtm_fx.toy.judge import Judge

Run = Annotated[Path, typer.Option("--out", help="Folder of checkpoint.pt, losses.json and loss.png.")]
Resume = Annotated[bool, typer.Option("--resume", help="Go on from the checkpoint in --out.")]
Every = Annotated[int, typer.Option(min=1, help="Steps between checkpoints.")]
Threads = Annotated[int, typer.Option(min=1, help="CPU threads.")]

JUDGE_SIZES: tuple[tuple[int, int], ...] = ((64, 64), (32, 32), (48, 48), (96, 96), (48, 64), (32, 96))
"""Heights and widths at which a new judge is examined."""


def train(
    context: typer.Context,
    out: Run,
    model: Annotated[str | None, typer.Option(help="Name of the toy: sd3 or flux; by default sd3.")] = None,
    resume: Resume = False,
    every: Every = 100,
    threads: Threads = 1,
    steps: Annotated[int | None, typer.Option(min=1, help="Steps in all.")] = None,
    high_steps: Annotated[
        int | None, typer.Option(min=0, help="Steps at the end around 64 x 64 px; before, around 32 x 32.")
    ] = None,
    seed: Annotated[int | None, typer.Option(min=0, help="Seed of weights and data.")] = None,
    matrix_lr: Annotated[float | None, typer.Option(help="Peak rate of the blocks' matrices (Muon).")] = None,
    other_lr: Annotated[float | None, typer.Option(help="Peak rate of everything else (AdamW).")] = None,
    warmup: Annotated[int | None, typer.Option(min=0, help="Steps of linear warm-up.")] = None,
    decay: Annotated[
        float | None, typer.Option(min=0, max=1, help="Fraction of the steps over which the rate falls.")
    ] = None,
    ema: Annotated[
        float | None, typer.Option(min=0, max=1, help="Decay of the average of the weights.")
    ] = None,
    pixels: Annotated[int | None, typer.Option(min=1, help="Pixels per batch around 32 x 32 px.")] = None,
    high_pixels: Annotated[
        int | None, typer.Option(min=1, help="Pixels per batch around 64 x 64 px.")
    ] = None,
    shift: Annotated[
        float | None,
        typer.Option(min=0.1, help="Shift of the times at 32 x 32 px: the larger, the nearer to noise."),
    ] = None,
    bfloat16: Annotated[
        bool | None, typer.Option("--bfloat16/--float32", help="Compute in bfloat16 or float32.")
    ] = None,
    start: Annotated[
        str | None,
        typer.Option(
            help="Folder of an earlier run whose averaged weights this one starts from, or shipped."
        ),
    ] = None,
    distil: Annotated[
        float | None,
        typer.Option(min=1, help="Guidance scale to distil into one call; by default none."),
    ] = None,
    teacher: Annotated[
        str | None,
        typer.Option(help="Run whose guidance is distilled, or shipped; by default that of --start."),
    ] = None,
) -> None:
    """Train a toy on scenes; options that are left out are those of `sdtm_fx.toy.trainer.TrainConfig`."""
    import torch

    from sdtm_fx.toy.train import train as run
    from sdtm_fx.toy.trainer import TrainConfig

    torch.set_num_threads(threads)
    names = [field.name for field in dataclasses.fields(TrainConfig)]
    config = TrainConfig(**{name: context.params[name] for name in names if context.params[name] is not None})
    with training_bar(config.steps) as on_step:
        trainer = run(config, out, resume=resume, every=every, on_step=on_step)
    _draw_curve(trainer.losses, f"the {config.model} toy", out)


def export(
    run: Annotated[Path, typer.Option(help="Folder of the training run.")],
    out: Annotated[Path, typer.Option(help="Folder of the pipeline, float16.")],
    shift: Annotated[float | None, typer.Option(help="Shift of the scheduler's times; by default 2.")] = None,
) -> None:
    """Turn a training run into the weights that the package carries."""
    import torch

    from sdtm_fx.toy.export import SHIFT, pipeline_from_checkpoint

    pipeline = pipeline_from_checkpoint(run / "checkpoint.pt", shift=SHIFT if shift is None else shift)
    pipeline.to(dtype=torch.float16).save_pretrained(out)
    say(f"pipeline: {out}")


def judge(
    out: Run,
    export: Annotated[
        Path | None, typer.Option(help="Also write the float16 weights to this folder.")
    ] = None,
    resume: Resume = False,
    every: Every = 200,
    threads: Threads = 1,
    steps: Annotated[int | None, typer.Option(min=1, help="Training steps; by default 3600.")] = None,
    seed: Annotated[int, typer.Option(min=0, help="Of weights and scenes.")] = 0,
    scenes: Annotated[int, typer.Option(min=1, help="Unseen scenes per size that it is examined on.")] = 4096,
) -> None:
    """Train the judge on rendered scenes, and examine it on scenes that training never draws."""
    import torch

    from sdtm_fx.toy.judge_train import JudgeConfig, export_judge, finished_judge, train_judge

    torch.set_num_threads(threads)
    config = JudgeConfig(seed=seed) if steps is None else JudgeConfig(seed=seed, steps=steps)
    with training_bar(config.steps) as on_step:
        trainer = train_judge(config, out, resume=resume, every=every, on_step=on_step)
    _draw_curve(trainer.losses, "the judge", out)
    if export is not None:
        export_judge(trainer, export)
        say(f"weights: {export}")
    write_json(out / "accuracy.json", _examine(finished_judge(trainer), scenes))


def _examine(judge: Judge, scenes: int) -> dict[str, Any]:
    """Grade unseen scenes at every size of `JUDGE_SIZES`, and print the table."""
    from sdtm_fx.toy.judge_grade import grade_scenes

    by_size = {}
    with counting_bar("unseen scenes", scenes * len(JUDGE_SIZES)) as advance:
        for height, width in JUDGE_SIZES:
            by_size[f"{height} x {width}"] = grade_scenes(judge, scenes, height, width)
            advance(scenes)
    print_grades(f"judge, {scenes} unseen rendered scenes per size", by_size)
    return {size: grades_as_dict(grades) for size, grades in by_size.items()}


def _draw_curve(losses: Sequence[float], name: str, folder: Path) -> None:
    from sdtm_fx.toy.loss_curve import loss_curve

    loss_curve(losses, f"training of {name}").savefig(folder / "loss.png")
    say(f"losses: {folder / 'losses.json'}, {folder / 'loss.png'}")
