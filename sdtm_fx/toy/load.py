"""Loads a trained toy from the weights that the package carries."""

from __future__ import annotations

from pathlib import Path

import torch
from diffusers import FlowMatchEulerDiscreteScheduler, SD3Transformer2DModel

from sdtm_fx.errors import SdtmFxError, nearest
from sdtm_fx.toy.captions import CaptionEncoder
from sdtm_fx.toy.pipeline import ToySD3Pipeline

WEIGHTS = Path(__file__).parent / "weights"
"""One folder per toy, each what `save_pretrained` of its pipeline writes, in float16."""

TOYS: tuple[str, ...] = ("sd3",)
"""Names of the toys."""


def load_toy(name: str = "sd3", *, dtype: torch.dtype = torch.float32) -> ToySD3Pipeline:
    """Load a trained toy pipeline, on the CPU and without its progress bar.

    Args:
        name: One of `TOYS`.
        dtype: Floating type of the weights in memory; on disk they are float16.

    Raises:
        SdtmFxError: If there is no such toy, or its weights are not installed.
    """
    if name not in TOYS:
        raise SdtmFxError(f"load_toy: no toy {name!r}{nearest(name, TOYS)}; accepted: {', '.join(TOYS)}")
    folder = WEIGHTS / name
    if not (folder / "model_index.json").is_file():
        raise SdtmFxError(
            f"load_toy: the weights of {name!r} are not installed: {folder} has no model_index.json"
        )
    pipeline = ToySD3Pipeline(
        transformer=SD3Transformer2DModel.from_pretrained(
            folder, subfolder="transformer", local_files_only=True, low_cpu_mem_usage=False
        ),
        text_encoder=CaptionEncoder.from_pretrained(
            folder, subfolder="text_encoder", local_files_only=True, low_cpu_mem_usage=False
        ),
        scheduler=FlowMatchEulerDiscreteScheduler.from_pretrained(folder, subfolder="scheduler"),
    )
    if dtype != torch.float32:
        pipeline.to(dtype=dtype)
    pipeline.set_progress_bar_config(disable=True)
    return pipeline
