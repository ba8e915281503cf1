"""`sdtm-fx analyze`: how redundant a model's tokens are, where and when; data, plots and a suggestion."""

from __future__ import annotations

import math
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

if TYPE_CHECKING:
    from rich.console import Console

    from sdtm_fx.analyze import Analysis, Sampling, Settings, Suggestion


def analyze(
    model: Annotated[
        str, typer.Option(help="toy-sd3, toy-flux, or the folder of a diffusers checkpoint.")
    ] = "toy-sd3",
    recipe: Annotated[
        str | None,
        typer.Option(help="Recipe that names the token layout; by default the one that fits the model."),
    ] = None,
    prompts: Annotated[
        Path | None, typer.Option(help="Prompts, one a line; toys have captions of held-out scenes.")
    ] = None,
    images: Annotated[int, typer.Option(min=1, help="Number of images.")] = 4,
    steps: Annotated[int, typer.Option(min=4, help="Denoising steps.")] = 28,
    height: Annotated[int | None, typer.Option(min=1, help="Pixels; by default the pipeline's.")] = None,
    width: Annotated[int | None, typer.Option(min=1, help="Pixels; by default the pipeline's.")] = None,
    guidance: Annotated[float | None, typer.Option(help="Guidance scale; by default the pipeline's.")] = None,
    batch: Annotated[int, typer.Option(min=1, help="Images per call of the pipeline.")] = 1,
    seed: Annotated[int, typer.Option(min=0, help="Of the first image; the others follow.")] = 0,
    ratio: Annotated[
        float, typer.Option(help="Fraction removed on average, for the suggested ratios.")
    ] = 0.5,
    wavelet: Annotated[str, typer.Option(help="Orthogonal wavelet of PyWavelets.")] = "haar",
    window: Annotated[
        list[int] | None,
        typer.Option(help="Edge of windows to compare with the whole grid; may be repeated."),
    ] = None,
    maps: Annotated[
        bool, typer.Option("--maps", help="Also draw where in the first image tokens are alike.")
    ] = False,
    out: Annotated[Path, typer.Option(help="Folder for data and plots.")] = Path("analyze_output"),
    dtype: Annotated[str, typer.Option(help="float32, bfloat16 or float16.")] = "float32",
    device: Annotated[str, typer.Option(help="cpu or cuda.")] = "cpu",
) -> None:
    """Measure sub-bands and redundancy of a model's tokens per step and block; data, plots and a suggestion."""
    from rich.console import Console

    from sdtm_fx.analyze import Sampling, Settings, suggest
    from sdtm_fx.analyze.layout import find_layout
    from sdtm_fx.analyze.report import render, save_data
    from sdtm_fx.evaluate.models import ModelSource, choose_prompts

    console, source = Console(), ModelSource(model, dtype, device)
    settings = Settings(wavelet=wavelet, windows=tuple(window or (2, 4)), maps=maps)
    texts = choose_prompts(source, prompts, images, seed)
    # Images are decoded only where one is drawn beside its maps.
    sampling = Sampling(steps, height, width, guidance, seed, batch, output_type="pil" if maps else "latent")
    pipeline = source.load()
    layout = find_layout(pipeline, recipe)
    console.print(
        f"{model}: {type(layout.model).__name__}, token layout of recipe {layout.recipe.name}, "
        f"{len(layout.blocks)} blocks",
        soft_wrap=True,
        highlight=False,
    )
    analysis, first = _measure(console, pipeline, texts, sampling, layout.recipe, settings)
    suggestion = suggest(analysis, ratio=ratio)
    console.print(render(analysis, suggestion))
    out.mkdir(parents=True, exist_ok=True)
    record = {"source": model, "prompts": list(texts), "seed": seed, "guidance": guidance, "dtype": dtype}
    files = save_data(analysis, suggestion, out, record, recipe)
    files += _draw(analysis, suggestion, first, out)
    for file in files:
        console.print(f"written: {file}", soft_wrap=True, highlight=False)


def _measure(
    console: Console,
    pipeline: Any,
    texts: tuple[str, ...],
    sampling: Sampling,
    recipe: Any,
    settings: Settings,
) -> tuple[Analysis, Any]:
    """Sample with a progress bar; returns the first image too."""
    from sdtm_fx.analyze import analyze as measure
    from sdtm_fx.cli.bars import counting_bar

    drawn: list[Any] = []
    steps = sampling.steps * math.ceil(len(texts) / sampling.batch)
    with counting_bar("steps", steps, console=console, transient=True) as advance:
        analysis = measure(
            pipeline,
            texts,
            sampling,
            recipe=recipe,
            settings=settings,
            on_step=lambda: advance(1),
            on_images=drawn.extend,
        )
    return analysis, drawn[0]


def _draw(analysis: Analysis, suggestion: Suggestion, first: Any, out: Path) -> list[Path]:
    from sdtm_fx.analyze import plots
    from sdtm_fx.analyze.result import KINDS

    figures = {"curves.png": plots.curves(analysis, suggestion)}
    figures |= {f"heatmaps_{kind}.png": plots.heatmaps(analysis, kind) for kind in KINDS}
    if analysis.settings.maps:
        figures |= {f"maps_{kind}.png": plots.spatial_maps(analysis, kind, first) for kind in KINDS}
    for name, figure in figures.items():
        figure.savefig(out / name)
    return [out / name for name in figures]
