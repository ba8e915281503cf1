"""What a comparison says, as a table and as data."""

from __future__ import annotations

from collections.abc import Iterable
from statistics import median
from typing import Any, Literal

import diffusers
import torch
from rich.console import RenderableType
from rich.table import Table

from sdtm_fx.demo.compare import Comparison, Outcome


def render(comparison: Comparison) -> RenderableType:
    """A table with one column per pipeline: cost, time, fidelity of each image, whether restore is exact."""
    outcomes = comparison.outcomes
    first = outcomes[0].explanation
    title = f"{comparison.task.title}: cost, time and fidelity"
    table = Table("", "dense", *(outcome.recipe for outcome in outcomes), title=title)

    def row(label: str, dense: str, values: Iterable[str]) -> None:
        table.add_row(label, dense, *values)

    row("MACs per step, linear layers", _macs(first.dense.linear), (_share(o, "linear") for o in outcomes))
    row("MACs per step, all", _macs(first.dense.total), (_share(o, "total") for o in outcomes))
    row("speedup in theory", "1.00x", (f"{o.explanation.theoretical_speedup:.2f}x" for o in outcomes))
    seconds = (f"{median(o.seconds):.2f} s" for o in outcomes)
    row("time per image, median", f"{median(comparison.seconds):.2f} s", seconds)
    row("speedup measured here", "1.00x", (f"{comparison.speedup(o):.2f}x" for o in outcomes))
    table.add_section()
    row("PSNR to dense, mean", "", (f"{o.mean_psnr:.1f} dB" for o in outcomes))
    for case, caption in enumerate(comparison.task.captions):
        row(f"  {caption}", "", (f"{o.psnr[case]:.1f} dB" for o in outcomes))
    table.add_section()
    row("restored bit for bit", "", ("yes" if o.restored else "NO" for o in outcomes))
    return table


def environment() -> str:
    """The versions and the device that the times belong to."""
    return (
        f"torch {torch.__version__}, diffusers {diffusers.__version__}, CPU, "
        f"{torch.get_num_threads()} thread(s), float32. Times at this size on a CPU say nothing about a GPU."
    )


def as_dict(comparison: Comparison) -> dict[str, Any]:
    """Everything but the images, as plain data."""
    return {
        "title": comparison.task.title,
        "captions": list(comparison.task.captions),
        "dense_seconds": list(comparison.seconds),
        "outcomes": [
            {
                "recipe": outcome.recipe,
                "psnr": list(outcome.psnr),
                "seconds": list(outcome.seconds),
                "restored": outcome.restored,
                "explanation": outcome.explanation.as_dict(),
            }
            for outcome in comparison.outcomes
        ],
    }


def _share(outcome: Outcome, convention: Literal["linear", "total"]) -> str:
    e = outcome.explanation
    mean, dense = getattr(e.mean, convention), getattr(e.dense, convention)
    return f"{_macs(mean)} ({mean / dense:.2f})"


def _macs(count: float) -> str:
    return f"{count / 1e9:.3g} G"
