"""Trains the toy on one CPU core, resumable and deterministic by seed.

Run as `python -m sdtm_fx.toy.train --out runs/toy`, and again with `--resume` to go on.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import logging
from collections.abc import Sequence
from pathlib import Path

import torch

from sdtm_fx.errors import SdtmFxError
from sdtm_fx.toy.trainer import TrainConfig, Trainer

logger = logging.getLogger(__name__)


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


def train(config: TrainConfig, folder: Path, *, resume: bool = False, every: int = 100) -> Trainer:
    """Train to the end, with a checkpoint every `every` steps.

    Args:
        config: The run.
        folder: Where checkpoints and the loss curve go.
        resume: Go on from the checkpoint in `folder`.
        every: Steps between checkpoints.

    Raises:
        SdtmFxError: If there is nothing to resume, or a run would be overwritten.
    """
    trainer, path = Trainer(config), folder / "checkpoint.pt"
    if resume and not path.is_file():
        raise SdtmFxError(f"train: nothing to resume in {folder}: checkpoint.pt is missing")
    if path.is_file() and not resume:
        raise SdtmFxError(f"train: {folder} holds a run already; pass --resume to go on, or another --out")
    if resume:
        trainer.load_state_dict(torch.load(path, weights_only=True))
    while trainer.step < config.steps:
        trainer.train_step()
        if trainer.step % 20 == 0 or trainer.step == config.steps:
            recent = trainer.losses[-20:]
            logger.info(
                "step %d  loss %.4f  %.0f s", trainer.step, sum(recent) / len(recent), trainer.seconds
            )
        if trainer.step % every == 0 or trainer.step == config.steps:
            save_checkpoint(trainer, folder)
    return trainer


def main(arguments: Sequence[str] | None = None) -> None:
    """Command line of the training.

    Args:
        arguments: In place of `sys.argv[1:]`.
    """
    parser = argparse.ArgumentParser(prog="python -m sdtm_fx.toy.train", description=__doc__)
    parser.add_argument("--out", type=Path, required=True, help="folder of checkpoints and loss curve")
    parser.add_argument("--resume", action="store_true", help="go on from the checkpoint in --out")
    parser.add_argument("--every", type=int, default=100, help="steps between checkpoints")
    for field in dataclasses.fields(TrainConfig):
        if field.name != "bfloat16":
            name = "--" + field.name.replace("_", "-")
            parser.add_argument(name, type=type(field.default), default=field.default)
    parser.add_argument("--float32", action="store_true", help="compute without bfloat16")
    options = vars(parser.parse_args(arguments))
    folder, resume, every = options.pop("out"), options.pop("resume"), options.pop("every")
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s")
    torch.set_num_threads(1)
    bfloat16 = not options.pop("float32")
    train(TrainConfig(**options, bfloat16=bfloat16), folder, resume=resume, every=every)


if __name__ == "__main__":
    main()
