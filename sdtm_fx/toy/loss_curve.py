"""Draws the losses of a training run. Nothing here touches the state that pyplot keeps."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from matplotlib.figure import Figure

from sdtm_fx.errors import SdtmFxError

_DPI = 120


def loss_curve(losses: Sequence[float], title: str, *, window: int = 50) -> Figure:
    """Draw the loss of every step, and its mean over the last `window` steps, on a logarithmic axis.

    Args:
        losses: One per step, at least one, positive.
        title: Of the figure.
        window: Steps; the first means are over as many as there are.

    Raises:
        SdtmFxError: If there are no losses.
    """
    if not losses:
        raise SdtmFxError("loss curve: there are no losses yet; train for at least one step")
    figure = Figure(figsize=(8, 4.5), dpi=_DPI, layout="constrained")
    axes = figure.subplots()
    steps = np.arange(1, len(losses) + 1)
    axes.plot(steps, losses, color="#3b4cc0", alpha=0.25, linewidth=0.8, label="loss of a step")
    axes.plot(
        steps, _running_mean(np.asarray(losses), window), color="#3b4cc0", label=f"mean of the last {window}"
    )
    axes.set(xlabel="training step", ylabel="loss", yscale="log", title=title)
    axes.grid(alpha=0.25, which="both")
    axes.legend(framealpha=0.6)
    return figure


def _running_mean(values: np.ndarray, window: int) -> np.ndarray:
    sums = np.concatenate([[0.0], np.cumsum(values)])
    ends = np.arange(1, len(values) + 1)
    starts = np.maximum(0, ends - window)
    means: np.ndarray = (sums[ends] - sums[starts]) / (ends - starts)
    return means
