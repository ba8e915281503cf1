"""The published shapes of models, built without weights: what recipes are explained and counted on."""

from __future__ import annotations

import itertools

import torch
from diffusers import UNet2DConditionModel
from torch import nn

from sdtm_fx.bench.configs import MODELS, BenchModel
from sdtm_fx.errors import RewriteError, nearest
from sdtm_fx.toy.flux import build_flux
from sdtm_fx.toy.sd3 import build_sd3

_CROSS = ("DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D")

SDXL = BenchModel(
    UNet2DConditionModel,
    {"sample_size": 128, "in_channels": 4, "out_channels": 4, "layers_per_block": 2,
     "down_block_types": _CROSS, "up_block_types": ("CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"),
     "block_out_channels": (320, 640, 1280), "transformer_layers_per_block": (1, 2, 10),
     "attention_head_dim": (5, 10, 20), "cross_attention_dim": 2048, "use_linear_projection": True,
     "addition_embed_type": "text_time", "addition_time_embed_dim": 256,
     "projection_class_embeddings_input_dim": 2816},
    (), 16, 77, 2,
)  # fmt: skip
"""SDXL base 1.0. A token is 16 pixels wide at the finer of the two levels that have tokens."""

PUBLISHED: dict[str, BenchModel] = {**MODELS, "sdxl": SDXL}
"""Models by name. Benchmarks build those of `MODELS` only, whose blocks all run on one grid."""

TOYS = ("toy-sd3", "toy-flux")


def build_shape(name: str) -> nn.Module:
    """Build a published model on meta, or a toy without its weights.

    Raises:
        RewriteError: There is none of that name.
    """
    known = (*PUBLISHED, *TOYS)
    if name not in known:
        raise RewriteError(f"no shape {name!r}{nearest(name, known)}; accepted: {', '.join(known)}")
    if name in TOYS:
        return build_sd3() if name == "toy-sd3" else build_flux()
    with torch.device("meta"):
        return PUBLISHED[name].build(**PUBLISHED[name].config)


def shape_of(recipe: str) -> str:
    """Return the shape that a recipe is for by its name: how the name ends, or else begins.

    Args:
        recipe: Name of the recipe; parts in front of a slash do not count.

    Raises:
        RewriteError: The name says nothing.
    """
    known = (*PUBLISHED, *TOYS)
    base = recipe.rpartition("/")[2]
    ending = [name for name in known if base.endswith(f"-{name}")]
    if ending:
        return max(ending, key=len)
    best = max(known, key=lambda name: _shared(name, base))
    if _shared(best, base) < 3:
        raise RewriteError(
            f"no published shape for recipe {recipe!r}; give --model ({', '.join(known)}) or --config"
        )
    return best


def _shared(left: str, right: str) -> int:
    """Number of characters with which both begin."""
    same = (a == b for a, b in zip(left, right, strict=False))
    return sum(itertools.takewhile(bool, same))
