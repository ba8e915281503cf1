"""Trains the toys on one CPU core, resumable and deterministic by seed; `sdtm-fx toy train` runs it."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable
from pathlib import Path

import torch

from sdtm_fx.errors import SdtmFxError
from sdtm_fx.toy.files import read_checkpoint
from sdtm_fx.toy.trainer import TrainConfig, Trainer


def save_checkpoint(trainer: Trainer, folder: Path) -> None:
    """Write `checkpoint.pt` and `losses.json`; a crash while writing leaves the last ones whole.

    Args:
        trainer: The run.
        folder: Made if it is not there.
    """
    folder.mkdir(parents=True, exist_ok=True)
    partial = folder / "checkpoint.pt.part"
    torch.save(trainer.state_dict(), partial)
    partial.replace(folder / "checkpoint.pt")
    curve = {"config": dataclasses.asdict(trainer.config), "seconds": trainer.seconds, "loss": trainer.losses}
    (folder / "losses.json").write_text(json.dumps(curve))


def train(
    config: TrainConfig,
    folder: Path,
    *,
    resume: bool = False,
    every: int = 100,
    on_step: Callable[[Trainer], None] = lambda trainer: None,
) -> Trainer:
    """Train to the end, with a checkpoint every `every` steps.

    Args:
        config: The run.
        folder: Where checkpoints and the loss curve go.
        resume: Go on from the checkpoint in `folder`.
        every: Steps between checkpoints.
        on_step: Called after the checkpoint is read, and after each step.

    Raises:
        SdtmFxError: If there is nothing to resume, a run would be overwritten, or the checkpoint is not whole.
    """
    trainer, path = Trainer(config), folder / "checkpoint.pt"
    if path.is_file() and not resume:
        raise SdtmFxError(f"train: {folder} holds a run already; pass --resume to go on, or another --out")
    if resume:
        trainer.load_state_dict(read_checkpoint(path))
    on_step(trainer)
    while trainer.step < config.steps:
        trainer.train_step()
        on_step(trainer)
        if trainer.step % every == 0 or trainer.step == config.steps:
            save_checkpoint(trainer, folder)
    return trainer
