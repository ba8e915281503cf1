"""Loads a trained toy from the weights that the package carries."""

from __future__ import annotations

from pathlib import Path

import torch
from diffusers import FlowMatchEulerDiscreteScheduler, FluxTransformer2DModel, SD3Transformer2DModel

from sdtm_fx.errors import SdtmFxError, nearest
from sdtm_fx.toy.captions import CaptionEncoder
from sdtm_fx.toy.files import read_config, read_model
from sdtm_fx.toy.pipeline import ToyFluxPipeline, ToyPipeline, ToySD3Pipeline

WEIGHTS = Path(__file__).parent / "weights"
"""One folder per toy, each what `save_pretrained` of its pipeline writes, in float16."""

_CLASSES = {
    "sd3": (ToySD3Pipeline, SD3Transformer2DModel),
    "flux": (ToyFluxPipeline, FluxTransformer2DModel),
}

TOYS: tuple[str, ...] = tuple(_CLASSES)
"""Names of the toys."""


def load_toy(name: str = "sd3", *, dtype: torch.dtype = torch.float32) -> ToyPipeline:
    """Load a trained toy pipeline, on the CPU and without its progress bar.

    Args:
        name: One of `TOYS`.
        dtype: Floating type of the weights in memory; on disk they are float16.

    Raises:
        SdtmFxError: If there is no such toy, or its weights are not installed, cut short, or those of another
            model.
    """
    if name not in TOYS:
        raise SdtmFxError(f"load_toy: no toy {name!r}{nearest(name, TOYS)}; accepted: {', '.join(TOYS)}")
    folder = WEIGHTS / name
    if not (folder / "model_index.json").is_file():
        raise SdtmFxError(
            f"load_toy: the weights of {name!r} are not installed: {folder} has no model_index.json"
        )
    pipeline_class, transformer_class = _CLASSES[name]
    pipeline = pipeline_class(
        transformer=read_model(transformer_class, folder / "transformer"),
        text_encoder=read_model(CaptionEncoder, folder / "text_encoder"),
        scheduler=FlowMatchEulerDiscreteScheduler.from_config(
            read_config(folder / "scheduler" / "scheduler_config.json")
        ),
    )
    if dtype != torch.float32:
        pipeline.to(dtype=dtype)
    pipeline.set_progress_bar_config(disable=True)
    return pipeline
