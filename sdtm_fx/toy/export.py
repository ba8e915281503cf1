"""Turns a training checkpoint into the weights that the package carries; `sdtm-fx toy export` runs it."""

from __future__ import annotations

from pathlib import Path

from diffusers import FlowMatchEulerDiscreteScheduler

from sdtm_fx.toy.files import read_checkpoint
from sdtm_fx.toy.pipeline import ToyFluxPipeline, ToyPipeline, ToySD3Pipeline
from sdtm_fx.toy.trainer import TrainConfig, Trainer

_PIPELINES = {"sd3": ToySD3Pipeline, "flux": ToyFluxPipeline}

SHIFT = 2.0
"""Shift of the sampling times: the toy decides colours and places at high noise, as larger grids do."""


def pipeline_from_checkpoint(path: Path, *, shift: float = SHIFT) -> ToyPipeline:
    """Build a float32 pipeline from the averaged weights of a checkpoint.

    Args:
        path: A `checkpoint.pt` of `sdtm_fx.toy.train`.
        shift: Shift of the scheduler (Esser et al. 2024, eq. 23).

    Raises:
        SdtmFxError: If the checkpoint is missing or not whole.
    """
    state = read_checkpoint(path)
    trainer = Trainer(TrainConfig(**state["config"]))
    trainer.load_state_dict(state)
    toy = trainer.averaged()
    build = _PIPELINES[trainer.config.model]
    return build(toy.transformer, toy.text_encoder, FlowMatchEulerDiscreteScheduler(shift=shift))
