"""`sdtm-fx toy grade` and `sheet`: what a toy draws, by the judge and by eye."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.console import Console
from rich.table import Table

from sdtm_fx.cli.bars import counting_bar

if TYPE_CHECKING:
    from sdtm_fx.toy.judge_grade import Grades

Name = Annotated[str, typer.Option("--model", help="Name of the toy: sd3 or flux.")]
Images = Annotated[int, typer.Option(min=1, help="Images to draw.")]
Steps = Annotated[int, typer.Option(min=1, help="Denoising steps.")]
Height = Annotated[int, typer.Option(min=1, help="Pixels; even.")]
Width = Annotated[int, typer.Option(min=1, help="Pixels; even.")]
Batch = Annotated[int, typer.Option(min=1, help="Images per call of the pipeline.")]
Seed = Annotated[int, typer.Option(min=0, help="Noise of the first image; the others follow.")]
Threads = Annotated[int, typer.Option(min=1, help="CPU threads.")]


def grade(
    model: Name = "sd3",
    images: Images = 64,
    steps: Steps = 28,
    height: Height = 64,
    width: Width = 64,
    batch: Batch = 16,
    seed: Seed = 0,
    out: Annotated[Path | None, typer.Option(help="Also write the numbers to this JSON file.")] = None,
    threads: Threads = 1,
) -> None:
    """Draw captions with a toy, dense, and let the judge say how many images are as their captions say."""
    import torch

    from sdtm_fx.toy import load_toy
    from sdtm_fx.toy.judge import load_judge
    from sdtm_fx.toy.judge_grade import grade_samples, sample

    torch.set_num_threads(threads)
    pipeline, judge = load_toy(model), load_judge()
    size: dict[str, Any] = {"height": height, "width": width, "steps": steps, "seed": seed, "batch": batch}
    with counting_bar("images", images) as advance:
        grades = grade_samples(judge, list(sample(pipeline, images, **size, on_images=advance)))
    print_grades(f"toy {model}, {images} images, {steps} steps", {f"{height} x {width}": grades})
    if out is not None:
        write_json(out, {"model": model, "images": images, **size, "accuracy": grades_as_dict(grades)})


def sheet(
    out: Annotated[Path, typer.Option(help="PNG file.")],
    model: Name = "sd3",
    images: Images = 16,
    steps: Steps = 28,
    height: Height = 64,
    width: Width = 64,
    batch: Batch = 16,
    seed: Seed = 0,
    columns: Annotated[int, typer.Option(min=1, help="Pairs of images in a row.")] = 4,
    threads: Threads = 1,
) -> None:
    """Draw captions with a toy, and show the images beside the scenes that the captions describe."""
    import torch

    from sdtm_fx.toy import load_toy
    from sdtm_fx.toy.judge_data import draw
    from sdtm_fx.toy.judge_grade import sample
    from sdtm_fx.toy.sheet import draw_contact_sheet

    torch.set_num_threads(threads)
    pipeline = load_toy(model)
    size: dict[str, Any] = {"height": height, "width": width, "steps": steps, "seed": seed, "batch": batch}
    with counting_bar("images", images) as advance:
        parts = list(sample(pipeline, images, **size, on_images=advance))
    scenes = [scene for part in parts for scene in part.scenes]
    samples = torch.cat([part.images for part in parts])
    captions = [scene.caption for scene in scenes]
    picture = draw_contact_sheet(samples, draw(scenes, height, width), captions, columns=columns)
    out.parent.mkdir(parents=True, exist_ok=True)
    picture.save(out)
    say(f"contact sheet, each sample at the left of its scene: {out}")


def grades_as_dict(grades: Grades) -> dict[str, Any]:
    """Hits and shares with their 95 % intervals, per attribute and for all of them at once.

    Args:
        grades: Of at least one image.
    """
    from sdtm_fx.evaluate.interval import share_interval

    found: dict[str, Any] = {"count": grades.count}
    for name, hits in grades.hits().items():
        share = share_interval(hits, grades.count)
        found[name] = {"hits": hits, "share": share.mean, "low": share.low, "high": share.high}
    return found


def print_grades(title: str, by_size: dict[str, Grades]) -> None:
    """Print a table with one row per image size.

    Args:
        title: Of the table.
        by_size: At least one.
    """
    names = next(iter(by_size.values())).hits()
    table = Table("px", *names, title=title, caption="share that is right, with its 95 % interval")
    for size, grades in by_size.items():
        found = grades_as_dict(grades)
        cells = (f"{found[n]['share']:.4f} ({found[n]['low']:.3f} to {found[n]['high']:.3f})" for n in names)
        table.add_row(size, *cells)
    Console().print(table)


def write_json(path: Path, content: dict[str, Any]) -> None:
    """Write a JSON file, and say so.

    Args:
        path: Its folder is made if it is not there.
        content: What to write.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(f"{json.dumps(content, indent=1)}\n", encoding="utf-8")
    say(f"numbers: {path}")


def say(text: str) -> None:
    """Print a line that is never wrapped, so that paths can be copied.

    Args:
        text: The line.
    """
    Console().print(text, soft_wrap=True, highlight=False)
