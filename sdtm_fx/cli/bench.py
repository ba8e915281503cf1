"""``sdtm-fx bench``: how much of the theoretical speedup is measured."""

from __future__ import annotations

import json
import shlex
from pathlib import Path
from typing import Annotated, Any

import typer

_MODELS = (
    "auraflow, chroma, dit-xl-2, flux.1-dev, flux.1-kontext, flux.1-schnell, flux.2, hunyuan-dit, lumina-2, "
    "pixart-alpha, pixart-alpha-512, pixart-sigma, sana, sd3-medium, sd3.5-large, sd3.5-large-turbo, sd3.5-medium, "
    "z-image"
)


def bench(
    context: typer.Context,
    model: Annotated[str, typer.Option(help=f"Configuration: {_MODELS}.")] = "sd3-medium",
    config: Annotated[
        Path | None,
        typer.Option(
            help="config.json of a diffusers model, in place of a published one; it takes a --recipe.",
            show_default=False,
        ),
    ] = None,
    recipe: Annotated[
        str | None, typer.Option(help="Recipe; by default the one named like the model.")
    ] = None,
    ratio: Annotated[float, typer.Option(help="Fraction of the image tokens removed.")] = 0.47,
    layers: Annotated[
        str, typer.Option(help="Blocks of each kind, or 1,2 for one double and two single ones; 0: all.")
    ] = "1",
    height: Annotated[int, typer.Option(help="Image height in pixels.")] = 1024,
    width: Annotated[int, typer.Option(help="Image width in pixels.")] = 1024,
    batch: Annotated[int, typer.Option(min=1, help="Images; guidance doubles them.")] = 1,
    pixels: Annotated[
        int | None,
        typer.Option(
            min=1,
            show_default="as published; 16",
            help="Pixels of a side of a token: those of the VAE times the patch.",
        ),
    ] = None,
    text: Annotated[
        int | None, typer.Option(min=1, show_default="as published; 77", help="Text tokens.")
    ] = None,
    halves: Annotated[
        int | None,
        typer.Option(min=1, max=2, show_default="as published; 1", help="Guidance halves in one call."),
    ] = None,
    dtype: Annotated[str, typer.Option(help="float32, bfloat16 or float16.")] = "float32",
    device: Annotated[str, typer.Option(help="cpu, cuda or cuda:1.")] = "cpu",
    runs: Annotated[int, typer.Option(min=1, help="Pairs of runs per stage.")] = 5,
    threads: Annotated[int, typer.Option(min=0, help="CPU threads; 0 leaves torch's choice.")] = 0,
    keep_reuse: Annotated[bool, typer.Option(help="Blend with forecasts, as the recipe says.")] = True,
    compile: Annotated[
        bool, typer.Option("--compile", help="Compile both sides, dense and each phase.")
    ] = False,
    mode: Annotated[str | None, typer.Option(help="Mode of torch.compile, such as reduce-overhead.")] = None,
    cache: Annotated[
        Path | None,
        typer.Option(
            help="With --steps: compile from an empty cache and save it here; a second run starts warm."
        ),
    ] = None,
    steps: Annotated[int, typer.Option(min=0, help="Time a whole schedule of so many steps; 0: no.")] = 0,
    parts: Annotated[bool, typer.Option("--parts", help="Break the time of a merged call down.")] = False,
    growth: Annotated[
        bool,
        typer.Option("--growth", help="Time the parts from 512 to 2048 px, and rewrite from 2 to 16 layers."),
    ] = False,
    compare: Annotated[
        list[str] | None,
        typer.Option(
            help="Instead of the rest: this recipe, beside others named alike; see `sdtm-fx tables`."
        ),
    ] = None,
    out: Annotated[Path | None, typer.Option(help="Also write the result as JSON.")] = None,
    figure: Annotated[
        Path | None, typer.Option(help="Where --growth is drawn; by default beside the JSON, as .png.")
    ] = None,
) -> None:
    """Time each stage of a recipe against the dense model, in pairs, with random weights.

    Peak memory is that of CUDA devices; on a CPU nothing counts it.
    """
    import torch

    from sdtm_fx.bench.configs import bench_model, resized
    from sdtm_fx.bench.machine import machine
    from sdtm_fx.bench.options import (
        check_cache,
        check_comparison,
        check_files,
        device_of,
        dtype_of,
        grid_of,
        layers_of,
        mode_of,
    )
    from sdtm_fx.bench.own import own_model
    from sdtm_fx.bench.pairing import BenchSetup
    from sdtm_fx.bench.run import Wanted, run_bench, run_comparison
    from sdtm_fx.bench.start import compiler_start
    from sdtm_fx.errors import SdtmFxError
    from sdtm_fx.recipe.load import load_recipe

    if config is not None and not (recipe or compare):
        raise SdtmFxError(f"recipe: none is named like {config}; name the one to time (--recipe)")
    built = resized(bench_model(model) if config is None else own_model(config), pixels, text, halves)
    drawn = check_files(out, figure, growth)
    check_cache(cache, compile, steps)
    if compare:
        check_comparison(recipe=recipe, steps=steps, parts=parts, growth=growth, cache=cache)
    setup = BenchSetup(
        ratio=ratio,
        layers=layers_of(layers, built),
        grid=grid_of(height, width, built),
        batch=batch,
        dtype=dtype_of(dtype),
        device=device_of(device),
        runs=runs,
        compiled=compile,
        mode=mode_of(mode, compile),
    )
    if threads:
        torch.set_num_threads(threads)
    how = f"compiled{f', {mode}' if mode else ''}" if compile else "eager"
    size = f"layers {layers if setup.layers else 'all'}, {height} x {width} px, batch {batch}"
    title = f"{model if config is None else config}, {size}, ratio {ratio}, {dtype}, {device}, {how}"
    record: dict[str, Any] = {**machine(setup.device), "command": _command(context), "title": title}
    if compare:
        record |= run_comparison(built, [load_recipe(name) for name in compare], setup, title)
        _write(record, out)
        return
    chosen = load_recipe(recipe or model)
    if not keep_reuse:
        chosen = chosen.override(reuse=None)
    record["recipe"] = chosen.name
    with compiler_start(cache) as start:
        record["start"] = start if compile else None
        record |= run_bench(built, chosen, setup, Wanted(steps, parts, growth, drawn), title)
    _write(record, out)


def _command(context: typer.Context) -> str:
    """The command, with what was given and measures something."""
    words = ["sdtm-fx", "bench"]
    for option in context.command.params:
        name = option.name or ""
        source = context.get_parameter_source(name)
        if source is None or source.name != "COMMANDLINE" or name in ("out", "figure"):
            continue
        value = context.params[name]
        flag = option.opts[0] if value is not False else option.secondary_opts[0]
        for one in value if isinstance(value, list) else [value]:
            words += [flag] if isinstance(one, bool) else [flag, str(one)]
    return shlex.join(words)


def _write(record: dict[str, Any], out: Path | None) -> None:
    if out is not None:
        out.write_text(json.dumps(record, indent=2) + "\n", encoding="utf-8")
