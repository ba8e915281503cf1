"""The real configurations of the models that benchmarks build with random weights."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from diffusers import FluxTransformer2DModel, SD3Transformer2DModel

from sdtm_fx.errors import RewriteError, nearest


@dataclass(frozen=True)
class BenchModel:
    """A model to measure.

    Attributes:
        build: Its class.
        config: The published configuration.
        layers: Names of the numbers of blocks in `config`, in the order that the blocks run in.
        pixels: Pixels of the image per token, in each direction.
        text: Text tokens in the published pipeline.
        halves: CFG halves stacked in one call.
    """

    build: type[torch.nn.Module]
    config: dict[str, Any]
    layers: tuple[str, ...]
    pixels: int
    text: int
    halves: int

    @property
    def width(self) -> int:
        """Channels of a token."""
        return int(self.config["num_attention_heads"] * self.config["attention_head_dim"])


_SD3 = {"sample_size": 128, "patch_size": 2, "in_channels": 16, "out_channels": 16, "attention_head_dim": 64,
        "joint_attention_dim": 4096, "pooled_projection_dim": 2048}  # fmt: skip

MODELS: dict[str, BenchModel] = {
    "sd3-medium": BenchModel(
        SD3Transformer2DModel,
        {**_SD3, "num_layers": 24, "num_attention_heads": 24, "caption_projection_dim": 1536,
         "pos_embed_max_size": 192},
        ("num_layers",), 16, 333, 2,
    ),
    "sd3.5-medium": BenchModel(
        SD3Transformer2DModel,
        {**_SD3, "num_layers": 24, "num_attention_heads": 24, "caption_projection_dim": 1536,
         "pos_embed_max_size": 384, "dual_attention_layers": tuple(range(13)), "qk_norm": "rms_norm"},
        ("num_layers",), 16, 333, 2,
    ),
    "sd3.5-large": BenchModel(
        SD3Transformer2DModel,
        {**_SD3, "num_layers": 38, "num_attention_heads": 38, "caption_projection_dim": 2432,
         "pos_embed_max_size": 192, "qk_norm": "rms_norm"},
        ("num_layers",), 16, 333, 2,
    ),
    "flux.1-dev": BenchModel(
        FluxTransformer2DModel,
        {"patch_size": 1, "in_channels": 64, "num_layers": 19, "num_single_layers": 38, "attention_head_dim": 128,
         "num_attention_heads": 24, "joint_attention_dim": 4096, "pooled_projection_dim": 768, "guidance_embeds": True},
        ("num_layers", "num_single_layers"), 16, 512, 1,
    ),
}  # fmt: skip


def bench_model(name: str) -> BenchModel:
    """Return a model by name.

    Raises:
        RewriteError: There is none of that name.
    """
    if name not in MODELS:
        raise RewriteError(
            f"no benchmark model {name!r}; there are {', '.join(MODELS)}{nearest(name, MODELS)}"
        )
    return MODELS[name]


def config_of(model: BenchModel, layers: Sequence[int] | None) -> dict[str, Any]:
    """The published configuration, with other numbers of blocks.

    Args:
        model: What to build.
        layers: How many blocks of each kind, in the order of `BenchModel.layers`; None for all.
    """
    return {**model.config, **dict(zip(model.layers, layers or (), strict=layers is not None))}


def build(
    model: BenchModel, layers: Sequence[int] | None, dtype: torch.dtype, device: torch.device
) -> torch.nn.Module:
    """Build a model with seeded random weights, of small scale so that values stay finite in half precision.

    Args:
        model: What to build.
        layers: How many blocks of each kind, in the order of `BenchModel.layers`; None for all.
        dtype: Of the weights.
        device: Of the weights.
    """
    with torch.device("meta"):
        built = model.build(**config_of(model, layers))
    built = built.to_empty(device=device).to(dtype).eval().requires_grad_(False)
    generator = torch.Generator(device=device).manual_seed(0)
    for tensor in [*built.parameters(), *built.buffers()]:
        if tensor.is_floating_point():
            tensor.data.normal_(0.0, 0.02, generator=generator)
    return built
