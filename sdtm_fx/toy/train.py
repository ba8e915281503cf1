"""Trains the toys on one CPU core, resumable and deterministic by seed; `sdtm-fx toy train` runs it."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path

from torch import Tensor

from sdtm_fx.errors import SdtmFxError, nearest
from sdtm_fx.toy.files import read_checkpoint
from sdtm_fx.toy.load import load_toy
from sdtm_fx.toy.runs import run_to_end
from sdtm_fx.toy.trainer import TrainConfig, Trainer

SHIPPED = "shipped"
"""As `TrainConfig.start`: the weights that the package carries."""


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
            to start from or to learn from is missing or trained another model.
    """
    trainer = Trainer(config)
    teacher = config.teacher or config.start
    if config.start is not None and not resume:
        trainer.start_from(*_earlier(config.model, config.start, "start"))
    if config.distil is not None and teacher is not None and not resume:
        trainer.learn_from(*_earlier(config.model, teacher, "teacher" if config.teacher else "start"))
    return run_to_end(trainer, folder, "train", resume=resume, every=every, on_step=on_step)


def _earlier(model: str, source: str, key: str) -> tuple[str, Mapping[str, Tensor]]:
    """The model that an earlier run trained, and its averaged weights.

    Args:
        model: What this run trains.
        source: Folder of the earlier one, or `SHIPPED`.
        key: What names it in the configuration.
    """
    if source != SHIPPED:
        path = Path(source) / "checkpoint.pt"
        if not path.is_file():
            hint = nearest(source, (SHIPPED,))
            raise SdtmFxError(
                f"train: {key}: {path} is missing; accepted: the folder of a run, or {SHIPPED}{hint}"
            )
        state = read_checkpoint(path)
        return state["config"]["model"], state["average"]
    toy = load_toy(model)
    return model, {
        f"{part}.{name}": weight
        for part in ("transformer", "text_encoder")
        for name, weight in toy.components[part].state_dict().items()
    }
