"""What training runs share: going on from a checkpoint, and leaving one behind that is always whole."""

from __future__ import annotations

import dataclasses
import json
import math
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Protocol, TypeVar

import torch

from sdtm_fx.errors import SdtmFxError
from sdtm_fx.toy.files import read_checkpoint


class Run(Protocol):
    """The state of a training run; `config` is a dataclass with a field `steps`."""

    config: Any
    step: int
    losses: list[float]
    seconds: float

    def train_step(self) -> float:
        """Run one step and return its loss."""

    def state_dict(self) -> dict[str, Any]:
        """Everything that `load_state_dict` needs to go on exactly."""

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on from a checkpoint."""


R = TypeVar("R", bound=Run)


def run_to_end(
    run: R, folder: Path, name: str, *, resume: bool, every: int, on_step: Callable[[R], None]
) -> R:
    """Train to the end, with `checkpoint.pt` and `losses.json` in a folder every `every` steps.

    Args:
        run: A fresh run.
        folder: Made if it is not there.
        name: What is trained, in messages.
        resume: Go on from the checkpoint in `folder`.
        every: Steps between checkpoints.
        on_step: Called after the checkpoint is read, and after each step.

    Raises:
        SdtmFxError: If there is nothing to resume, a run would be overwritten, or the checkpoint is not whole.
    """
    path = folder / "checkpoint.pt"
    if path.is_file() and not resume:
        raise SdtmFxError(f"{name}: {folder} holds a run already; pass --resume to go on, or another --out")
    if resume:
        run.load_state_dict(read_checkpoint(path))
    folder.mkdir(parents=True, exist_ok=True)
    on_step(run)
    while run.step < run.config.steps:
        run.train_step()
        on_step(run)
        if run.step % every == 0 or run.step == run.config.steps:
            _save(run, path)
    return run


def rate(step: int, *, steps: int, warmup: int, decay: float) -> float:
    """Learning rate of a step, as a fraction of the peak: warm-up, constant, cosine to zero.

    Args:
        step: From 0.
        steps: Steps in all.
        warmup: Steps of linear warm-up.
        decay: Fraction of the steps, at the end, over which the rate falls; 1 for all of them.
    """
    warm = min(1.0, (step + 1) / max(1, warmup))
    start = steps * (1 - decay)
    progress = min(1.0, max(0.0, (step - start) / max(1.0, steps - start)))
    return warm * 0.5 * (1 + math.cos(math.pi * progress))


def checked(name: str, loss: float, step: int) -> float:
    """Return a loss.

    Args:
        name: What is trained, in messages.
        loss: Of the step.
        step: From 0.

    Raises:
        SdtmFxError: If it is not finite.
    """
    if not math.isfinite(loss):
        raise SdtmFxError(f"{name}: loss is {loss} at step {step}; lower the learning rate")
    return loss


def check_same_run(name: str, saved: Mapping[str, Any], config: Any) -> None:
    """Raise unless a checkpoint was made with a configuration.

    Args:
        name: What is trained, in messages.
        saved: Fields of the configuration in the checkpoint; one that it does not know yet had its default.
        config: The dataclass to compare with.

    Raises:
        SdtmFxError: If a field differs; the text names all that do.
    """
    mine = dataclasses.asdict(config)
    theirs = {field.name: field.default for field in dataclasses.fields(config)} | dict(saved)
    other = [f"{key} {theirs[key]} (now {now})" for key, now in mine.items() if theirs[key] != now]
    if other:
        raise SdtmFxError(
            f"{name}: the checkpoint is of another run: {', '.join(other)}; resume with its settings"
        )


def _save(run: Run, path: Path) -> None:
    # A crash while writing leaves the last checkpoint whole.
    partial = path.with_suffix(".pt.part")
    torch.save(run.state_dict(), partial)
    partial.replace(path)
    curve = {"config": dataclasses.asdict(run.config), "seconds": run.seconds, "loss": run.losses}
    path.with_name("losses.json").write_text(json.dumps(curve), encoding="utf-8")
