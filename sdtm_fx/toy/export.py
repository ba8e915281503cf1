"""Turns a training checkpoint into the weights that the package carries.

Run as `python -m sdtm_fx.toy.export --run runs/toy --out sdtm_fx/toy/weights/sd3`.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

import torch
from diffusers import FlowMatchEulerDiscreteScheduler

from sdtm_fx.toy.pipeline import ToySD3Pipeline
from sdtm_fx.toy.trainer import TrainConfig, Trainer

SHIFT = 2.0
"""Shift of the sampling times: the toy decides colours and places at high noise, as larger grids do."""


def pipeline_from_checkpoint(path: Path, *, shift: float = SHIFT) -> ToySD3Pipeline:
    """Build a float32 pipeline from the averaged weights of a checkpoint.

    Args:
        path: A `checkpoint.pt` of `sdtm_fx.toy.train`.
        shift: Shift of the scheduler (Esser et al. 2024, eq. 23).
    """
    state = torch.load(path, weights_only=True)
    trainer = Trainer(TrainConfig(**state["config"]))
    trainer.load_state_dict(state)
    toy = trainer.averaged()
    return ToySD3Pipeline(toy.transformer, toy.text_encoder, FlowMatchEulerDiscreteScheduler(shift=shift))


def main(arguments: Sequence[str] | None = None) -> None:
    """Command line of the export.

    Args:
        arguments: In place of `sys.argv[1:]`.
    """
    parser = argparse.ArgumentParser(prog="python -m sdtm_fx.toy.export", description=__doc__)
    parser.add_argument("--run", type=Path, required=True, help="folder of the training run")
    parser.add_argument("--out", type=Path, required=True, help="folder of the exported pipeline")
    parser.add_argument("--shift", type=float, default=SHIFT, help="shift of the scheduler")
    options = parser.parse_args(arguments)
    pipeline = pipeline_from_checkpoint(options.run / "checkpoint.pt", shift=options.shift)
    pipeline.to(dtype=torch.float16).save_pretrained(options.out)


if __name__ == "__main__":
    main()
