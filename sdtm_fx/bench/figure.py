"""The figure of growth: time of plan, merge and unmerge against tokens, both as logarithms."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from matplotlib.figure import Figure

from sdtm_fx.bench.growth import Growth


def draw_growth(growths: Sequence[Growth], title: str, path: Path) -> None:
    """Write the figure; what was measured as points, the power law that fits as a line.

    Args:
        growths: One of each stage.
        title: Of the figure.
        path: The file; its ending says the format (.png, .svg, .pdf).
    """
    figure = Figure(figsize=(7.2, 4.8), layout="constrained")
    axes = figure.subplots()
    for number, growth in enumerate(growths):
        colour = f"C{number % 10}"
        fit = [growth.factor * tokens**growth.exponent for tokens in growth.tokens]
        axes.loglog(growth.tokens, [1000 * s for s in growth.seconds], "o", color=colour)
        axes.loglog(
            growth.tokens, [1000 * s for s in fit], color=colour, linewidth=1,
            label=f"{growth.stage}: tokens to the power of {growth.exponent:.2f}",
        )  # fmt: skip
    sizes = sorted({tokens for growth in growths for tokens in growth.tokens})
    axes.set_xticks(sizes, [str(tokens) for tokens in sizes])
    axes.minorticks_off()
    axes.set_xlabel("image tokens")
    axes.set_ylabel("plan + merge + unmerge, ms")
    axes.set_title(title, fontsize="medium", wrap=True)
    axes.grid(alpha=0.3)
    axes.legend(fontsize="small")
    figure.savefig(path, dpi=150, metadata={"Software": None} if path.suffix == ".png" else None)
