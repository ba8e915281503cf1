"""Figures of an analysis. Nothing here touches the state that pyplot keeps."""

from __future__ import annotations

from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from sdtm_fx.analyze.maths import BANDS
from sdtm_fx.analyze.result import KINDS, Analysis, Array
from sdtm_fx.analyze.suggest import Suggestion

_TITLES = {"output": "what blocks return", "update": "what blocks add"}
_COLOURS = ("#3b4cc0", "#dd8452", "#55a868", "#8172b3")
_DPI = 120


def curves(analysis: Analysis, suggestion: Suggestion | None = None) -> Figure:
    """Curves over the steps: lines are means, shades reach from the least to the greatest block.

    Band norms are shaded over images and blocks, as in the supplement of the paper.
    """
    figure = Figure(figsize=(11, 12.5), dpi=_DPI, layout="constrained")
    grid: Any = figure.subplots(5, 2, sharex=True, sharey="row")
    for column, kind in enumerate(KINDS):
        axes: list[Axes] = list(grid[:, column])
        scalars = analysis.scalars(kind)
        axes[0].set_title(_TITLES[kind], fontsize=12)
        for band, colour in zip(BANDS, _COLOURS, strict=True):
            _line(axes[0], scalars[band], band, colour, over_images=True)
        axes[0].set_yscale("log")
        _line(axes[1], scalars["detail_share"], "LH, HL, HH", _COLOURS[0])
        _line(axes[2], scalars["similarity"], "anywhere", _COLOURS[0])
        for edge, colour in zip(analysis.settings.windows, _COLOURS[1:], strict=False):
            _line(axes[2], scalars[f"similarity_in_{edge}x{edge}"], f"in {edge} x {edge} windows", colour)
        _line(axes[3], scalars["distance"], "to the most similar token", _COLOURS[0])
        axes[3].axhline(analysis.random_distance, color="grey", linestyle=":", label="two tokens at random")
        for edge, colour in zip(analysis.settings.windows, _COLOURS[1:], strict=False):
            _line(axes[4], scalars[f"gap_to_{edge}x{edge}"], f"{edge} x {edge} windows", colour)
        axes[4].set_ylim(bottom=0)
        axes[4].set_xlabel("denoising step")
        for axis in axes:
            axis.grid(alpha=0.25)
            if suggestion is not None and suggestion.until is not None:
                axis.axvline(
                    suggestion.until * analysis.steps - 0.5, color="black", linestyle="--", linewidth=1
                )
    labels = ("L2 norm of sub-bands", "share of detail\nin the energy", "cosine to the most\nsimilar token")
    for axis, label in zip(
        grid[:, 0], (*labels, "grid distance\nto it", "cosine lost by\nwindows"), strict=True
    ):
        axis.set_ylabel(label)
        axis.legend(fontsize=8, framealpha=0.6)
    boundary = ""
    if suggestion is not None and suggestion.until is not None:
        boundary = f"; dashed: suggested end of the structure stage ({suggestion.until:.2f})"
    figure.suptitle(f"{_subject(analysis)}{boundary}", fontsize=11)
    return figure


def heatmaps(analysis: Analysis, kind: str) -> Figure:
    """Step by block, means over images, for one of `KINDS`."""
    scalars = analysis.scalars(kind)
    edge = analysis.settings.windows[0]
    panels = (
        ("detail_share", "share of detail in the energy"),
        ("similarity", "cosine to the most similar token"),
        ("distance", "grid distance to the most similar token"),
        (f"gap_to_{edge}x{edge}", f"cosine lost by {edge} x {edge} windows"),
    )
    blocks = len(analysis.blocks)
    figure = Figure(figsize=(11, min(2 * (1.8 + 0.14 * blocks), 14)), dpi=_DPI, layout="constrained")
    grid: Any = figure.subplots(2, 2, sharex=True, sharey=True)
    marks = np.unique(np.linspace(0, blocks - 1, min(blocks, 12)).round().astype(int))
    for axis, (name, title) in zip(grid.flat, panels, strict=True):
        shown = axis.imshow(
            scalars[name].mean(axis=0).T,
            aspect="auto",
            origin="upper",
            interpolation="nearest",
            cmap="viridis",
        )
        figure.colorbar(shown, ax=axis, pad=0.02)
        axis.set_title(title, fontsize=10)
        axis.set_yticks(marks, [_short(analysis.blocks[i]) for i in marks], fontsize=8)
    for axis in grid[1]:
        axis.set_xlabel("denoising step")
    for axis in grid[:, 0]:
        axis.set_ylabel("block")
    figure.suptitle(f"{_subject(analysis)}: {_TITLES[kind]}", fontsize=11)
    return figure


def spatial_maps(analysis: Analysis, kind: str, image: Any | None = None, columns: int = 5) -> Figure:
    """Similarity and distance of every token of the first image, means over blocks, at a few steps.

    Args:
        analysis: With maps.
        kind: One of `KINDS`.
        image: The picture that the first image became (PIL, or an array that matplotlib shows).
        columns: Number of steps, spread evenly from the first to the last.

    Raises:
        ValueError: The analysis was made without maps.
    """
    maps = analysis.kinds()[kind].maps
    if maps is None:
        raise ValueError("the analysis holds no maps; make it with Settings(maps=True)")
    means = maps.mean(axis=2)
    steps = sorted({round(s) for s in np.linspace(0, analysis.steps - 1, min(columns, analysis.steps))})
    lead = 0 if image is None else 1
    shape = 1.9 * analysis.grid[0] / analysis.grid[1]
    width = 2.05 * (len(steps) + lead) + 0.8
    figure = Figure(figsize=(width, 2 * min(shape, 4.0) + 1.0), dpi=_DPI, layout="constrained")
    grid: Any = figure.subplots(2, len(steps) + lead, squeeze=False)
    if image is not None:
        grid[0, 0].imshow(image)
        grid[0, 0].set_title("image", fontsize=9)
        grid[1, 0].set_visible(False)
    for row, (name, values) in enumerate((("best cosine", means[0]), ("distance to it", means[1]))):
        picked = values[steps]
        low, high = (float(v) for v in np.quantile(picked, (0.01, 0.99)))
        for place, step in enumerate(steps):
            axis = grid[row, place + lead]
            shown = axis.imshow(values[step], vmin=low, vmax=high, cmap="viridis", interpolation="nearest")
            axis.set_title(f"{name}, step {step}" if place == 0 else f"step {step}", fontsize=9)
        figure.colorbar(shown, ax=list(grid[row, lead:]), pad=0.01)
    for axis in grid.flat:
        axis.set_xticks([])
        axis.set_yticks([])
    figure.suptitle(f"{analysis.model}, {_TITLES[kind]}, first image, mean over blocks", fontsize=11)
    return figure


def _line(axis: Axes, values: Array, label: str, colour: str, *, over_images: bool = False) -> None:
    """Mean over images and blocks, shaded from the least to the greatest."""
    spread = values if over_images else values.mean(axis=0, keepdims=True)
    steps = np.arange(values.shape[1])
    axis.fill_between(
        steps, spread.min(axis=(0, 2)), spread.max(axis=(0, 2)), color=colour, alpha=0.13, linewidth=0
    )
    axis.plot(steps, values.mean(axis=(0, 2)), color=colour, linewidth=1.8, label=label)


def _subject(analysis: Analysis) -> str:
    return (
        f"{analysis.model}, {analysis.images} images, {analysis.grid[0]} x {analysis.grid[1]} tokens, "
        f"{len(analysis.blocks)} blocks"
    )


def _short(path: str) -> str:
    """Short name of a block: `transformer_blocks.3` is 3, `single_transformer_blocks.3` is single 3."""
    name, _, number = path.rpartition(".")
    lead = name.removesuffix("transformer_blocks").strip("._").replace("_", " ")
    return f"{lead} {number}".strip()
