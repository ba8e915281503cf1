"""What a benchmark is asked for, from words to values; what is not accepted is an error that says what is."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

import torch

from sdtm_fx.bench.configs import BenchModel
from sdtm_fx.errors import SdtmFxError, nearest
from sdtm_fx.grids import TokenGrid

DTYPES: dict[str, torch.dtype] = {
    "float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16,
    "fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16,
}  # fmt: skip
"""Floating types, by name and by nickname."""

DEVICES = ("cpu", "cuda")
"""Kinds of devices; a number may follow ``cuda``, behind a colon."""

MODES = ("default", "reduce-overhead", "max-autotune", "max-autotune-no-cudagraphs")
"""Modes of ``torch.compile``."""

FIGURES = (".png", ".svg", ".pdf")
"""Kinds of figures."""

Layers = tuple[int, ...] | None
"""Blocks of each kind; None for as many as the published model has."""


def dtype_of(word: str) -> torch.dtype:
    """The dtype of a name.

    Raises:
        SdtmFxError: There is none of that name.
    """
    if word not in DTYPES:
        raise _unknown("dtype", word, DTYPES)
    return DTYPES[word]


def device_of(word: str) -> torch.device:
    """The device of a name: ``cpu``, ``cuda`` or ``cuda:1``.

    Raises:
        SdtmFxError: There is none of that name, or not on this machine.
    """
    kind, colon, number = word.partition(":")
    if kind not in DEVICES or (colon and (kind == "cpu" or not number.isdecimal())):
        raise _unknown("device", word, (*DEVICES, "cuda:0"))
    if kind == "cpu":
        return torch.device("cpu")
    there = torch.cuda.device_count() if torch.cuda.is_available() else 0
    if not there:
        raise SdtmFxError(f"device: {word!r}, but torch sees no CUDA device on this machine; accepted: cpu")
    if int(number or 0) >= there:
        raise SdtmFxError(
            f"device: {word!r}, but there are {there}; accepted: cpu, cuda:0 to cuda:{there - 1}"
        )
    return torch.device(word)


def mode_of(word: str | None, compiled: bool) -> str | None:
    """The mode of ``torch.compile``; None is its default.

    Raises:
        SdtmFxError: There is none of that name, or nothing is compiled.
    """
    if word is None:
        return None
    if word not in MODES:
        raise _unknown("mode", word, MODES)
    if not compiled:
        raise SdtmFxError(f"mode: {word!r} is a mode of compiling; add --compile")
    return word


def check_cache(cache: Path | None, compiled: bool, steps: int) -> None:
    """Check that a compile cache would show in the result.

    Raises:
        SdtmFxError: Nothing is compiled, no schedule is timed, whose first calls tell a cold start from a warm one, or
            the folder is missing.
    """
    if cache is None:
        return
    if not compiled:
        raise SdtmFxError("cache: nothing is compiled that it could hold; add --compile")
    if not steps:
        raise SdtmFxError(
            "cache: first calls are timed over a schedule only; add --steps, such as --steps 28"
        )
    _check_folder("cache", cache)


def check_comparison(**others: object) -> None:
    """Check that nothing is asked for that a comparison of recipes does not measure.

    Args:
        others: Values of other options, by name.

    Raises:
        SdtmFxError: One of them is set.
    """
    for name, value in others.items():
        if value:
            raise SdtmFxError(
                f"compare: it measures no --{name}; accepted beside it: sizes, --ratio, --runs, --compile, --out"
            )


def layers_of(text: str, model: BenchModel) -> Layers:
    """Numbers of blocks: one for all kinds, or one for each, such as ``1,2``; 0 is the whole model.

    Args:
        text: The numbers, separated by commas.
        model: Says which kinds there are.

    Raises:
        SdtmFxError: These are no numbers, or not as many as the model has kinds of blocks.
    """
    kinds = len(model.layers)
    accepted = "accepted: 0 for the whole model, or a number of blocks from 1 on"
    if kinds > 1:
        accepted += f", or {kinds} with commas between them ({', '.join(model.layers)}), such as 1,2"
    words = [word.strip() for word in text.split(",")]
    if not all(word.isdecimal() for word in words):
        raise SdtmFxError(f"layers: found {text!r}; {accepted}")
    counts = tuple(int(word) for word in words)
    if counts == (0,):
        return None
    if len(counts) not in (1, kinds):
        found = f"{len(counts)} numbers in {text!r}, the model has {kinds} kind{'s' * (kinds > 1)} of blocks"
        raise SdtmFxError(f"layers: {found}; {accepted}")
    if 0 in counts:
        raise SdtmFxError(f"layers: found {text!r}; {accepted}")
    return counts * kinds if len(counts) == 1 else counts


def grid_of(height: int, width: int, model: BenchModel) -> TokenGrid:
    """(height, width) of an image in tokens.

    Raises:
        SdtmFxError: The image is no whole number of tokens.
    """
    side = model.pixels
    for name, value in (("height", height), ("width", width)):
        if value < side or value % side:
            near = max(side, round(value / side) * side)
            raise SdtmFxError(f"{name}: found {value}; accepted: multiples of {side}, the nearest is {near}")
    return height // side, width // side


def check_files(out: Path | None, figure: Path | None, growth: bool) -> Path | None:
    """Check, before hours of measuring, that results can be written; returns where growth is drawn, or None.

    Args:
        out: The JSON.
        figure: Where growth is drawn; None for beside the JSON.
        growth: Whether there will be something to draw.

    Raises:
        SdtmFxError: A folder is missing, the figure is of no known kind, or there is nothing to draw.
    """
    if figure is not None and not growth:
        raise SdtmFxError("figure: there is one of growth only; add --growth")
    if figure is not None and figure.suffix not in FIGURES:
        raise SdtmFxError(f"figure: found {str(figure)!r}; accepted: names that end in {', '.join(FIGURES)}")
    for name, path in (("out", out), ("figure", figure)):
        if path is not None:
            _check_folder(name, path)
    if not growth:
        return None
    return figure or (None if out is None else out.with_suffix(".png"))


def _check_folder(name: str, path: Path) -> None:
    if not path.parent.is_dir():
        raise SdtmFxError(
            f"{name}: there is no folder {str(path.parent)!r} to write {path.name} to; make it first"
        )


def _unknown(what: str, word: str, known: Iterable[str]) -> SdtmFxError:
    return SdtmFxError(f"{what}: no {word!r}{nearest(word, known)}; accepted: {', '.join(known)}")
