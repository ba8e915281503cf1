"""The figure of an evaluation: quality against MACs, and how errors grow over the steps."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

from matplotlib import colormaps
from matplotlib.figure import Figure

from sdtm_fx.evaluate.result import Evaluation, RowResult


def draw_figure(evaluation: Evaluation, path: Path) -> None:
    """Write the figure; one curve and one colour a method.

    Rows whose images are identical to the dense ones have no finite PSNR: they are named, not drawn.

    Args:
        evaluation: What was found.
        path: The file; its ending says the format (.png, .svg, .pdf).
    """
    figure = Figure(figsize=(12, 4.8), layout="constrained")
    quality, growth = figure.subplots(1, 2)
    methods = list(dict.fromkeys(result.row.method for result in evaluation.rows))
    palette = colormaps["tab10" if len(methods) <= 10 else "tab20"]
    colours = {method: palette(index % palette.N) for index, method in enumerate(methods)}
    _quality(quality, evaluation, colours)
    _growth(growth, evaluation, colours)
    figure.savefig(path, dpi=150, metadata={"Software": None} if path.suffix == ".png" else None)


def _quality(axes: Any, evaluation: Evaluation, colours: dict[str, Any]) -> None:
    identical = []
    for method, colour in colours.items():
        points = []
        for result in evaluation.rows:
            if result.row.method != method:
                continue
            estimate = evaluation.estimate(result.row.label, "psnr")
            if math.isinf(estimate.mean):
                identical.append(result.row.label)
            else:
                points.append((result.total, estimate, result))
        points.sort(key=lambda point: point[0])
        if not points:
            continue
        means = [estimate.mean for _, estimate, _ in points]
        low = [estimate.mean - _or(estimate.low, estimate.mean) for _, estimate, _ in points]
        high = [_or(estimate.high, estimate.mean) - estimate.mean for _, estimate, _ in points]
        axes.errorbar(
            [x for x, _, _ in points], means, yerr=[low, high],
            color=colour, marker="o", markersize=4, capsize=3, linewidth=1, label=method,
        )  # fmt: skip
    axes.set_xlabel("MACs relative to dense, all of them counted")
    axes.set_ylabel("PSNR to the dense image, dB")
    axes.set_title(
        "Quality against cost" + (f"\nidentical to dense: {', '.join(identical)}" if identical else "")
    )
    axes.grid(alpha=0.3)
    if axes.get_legend_handles_labels()[0]:
        axes.legend(fontsize="small")


def _growth(axes: Any, evaluation: Evaluation, colours: dict[str, Any]) -> None:
    steps = range(1, evaluation.sampling.steps + 1)
    shown = [result for result in evaluation.rows if any(map(any, result.growth))]
    for index, result in enumerate(shown):
        estimates = [result.growth_at(step - 1) for step in steps]
        # An axis of logarithms has no place for the zeros of steps that are still dense.
        means = [estimate.mean or math.nan for estimate in estimates]
        colour = colours[result.row.method]
        axes.plot(
            steps, means, color=colour, linestyle=_style(shown, index), linewidth=1, label=result.row.label
        )
        low = [_or(estimate.low, estimate.mean) or math.nan for estimate in estimates]
        high = [_or(estimate.high, estimate.mean) or math.nan for estimate in estimates]
        axes.fill_between(steps, low, high, color=colour, alpha=0.15, linewidth=0)
    axes.set_xlabel("denoising step")
    axes.set_ylabel("relative L2 error of the latent")
    axes.set_title("Growth of the error")
    axes.grid(alpha=0.3)
    if shown:
        axes.set_yscale("log")
    if 0 < len(shown) <= 12:
        axes.legend(fontsize="small")


def _style(rows: list[RowResult], index: int) -> str:
    """Line style: rows of one method share a colour."""
    earlier = sum(row.row.method == rows[index].row.method for row in rows[:index])
    return ("-", "--", "-.", ":")[earlier % 4]


def _or(bound: float | None, value: float) -> float:
    return value if bound is None else bound
