"""Trains the toys on one CPU core, resumable and deterministic by seed; `sdtm-fx toy train` runs it."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from sdtm_fx.toy.files import read_checkpoint
from sdtm_fx.toy.runs import run_to_end
from sdtm_fx.toy.trainer import TrainConfig, Trainer


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
        SdtmFxError: If there is nothing to resume, a run would be overwritten, a checkpoint is not whole, or the run
            to start from trained another model.
    """
    trainer = Trainer(config)
    if config.start is not None and not resume:
        trainer.start_from(read_checkpoint(Path(config.start) / "checkpoint.pt"))
    return run_to_end(trainer, folder, "train", resume=resume, every=every, on_step=on_step)
