"""Small random video transformers of diffusers' own classes, with calls of any batch, grid and text length."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import diffusers
import torch
from torch import nn

from sdtm_fx.grids import TokenGrid, tokens_on

Inputs = Callable[[int, TokenGrid], dict[str, Any]]
TEXT = 7


@dataclass(frozen=True)
class Video:
    """A family of video models.

    Attributes:
        recipe: Shipped recipe.
        build: Makes a model of two blocks, or of two of each kind.
        inputs: Makes the arguments of a call from batch and (frames, height, width) in tokens.
        text: Text tokens of the calls.
    """

    recipe: str
    build: Callable[[], nn.Module]
    inputs: Inputs
    text: int = TEXT


def seeded(make: Callable[[], nn.Module]) -> Callable[[], nn.Module]:
    """A model whose weights, gates of adaptive norms included, are those of one seed."""

    def build() -> nn.Module:
        torch.manual_seed(0)
        model = make().eval()
        for parameter in model.parameters():
            if parameter.ndim > 1 or parameter.abs().sum() == 0:
                nn.init.normal_(parameter, std=0.1)
        return model

    return build


def noise(*shape: int, seed: int = 1) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def wan(**config: Any) -> nn.Module:
    return diffusers.WanTransformer3DModel(
        **{
            "patch_size": (1, 2, 2), "num_attention_heads": 2, "attention_head_dim": 12, "in_channels": 4,
            "out_channels": 4, "text_dim": 16, "freq_dim": 16, "ffn_dim": 48, "num_layers": 2, "rope_max_seq_len": 64,
        }
        | config
    )  # fmt: skip


def wan_inputs(batch: int, grid: TokenGrid) -> dict[str, Any]:
    frames, height, width = grid
    return {
        "hidden_states": noise(batch, 4, frames, 2 * height, 2 * width),
        "timestep": torch.full((batch,), 500.0),
        "encoder_hidden_states": noise(batch, TEXT, 16, seed=2),
        "return_dict": False,
    }


def wan_image_inputs(batch: int, grid: TokenGrid) -> dict[str, Any]:
    return wan_inputs(batch, grid) | {
        "encoder_hidden_states": noise(batch, 512, 16, seed=2),
        "encoder_hidden_states_image": noise(batch, 257, 20, seed=3),
    }


def wan_timed_inputs(batch: int, grid: TokenGrid) -> dict[str, Any]:
    """A time for every token, as for Wan 2.2 TI2V: that of a given image, the first frame, is over."""
    frames, height, width = grid
    time = torch.full((batch, frames, height * width), 500.0)
    time[:, 0] = 0
    return wan_inputs(batch, grid) | {"timestep": time.flatten(1)}


def hunyuan() -> nn.Module:
    return diffusers.HunyuanVideoTransformer3DModel(
        in_channels=4, out_channels=4, num_attention_heads=2, attention_head_dim=16, num_layers=2, num_single_layers=2,
        num_refiner_layers=1, patch_size=2, patch_size_t=1, guidance_embeds=True, text_embed_dim=16,
        pooled_projection_dim=16, rope_axes_dim=(4, 6, 6),
    )  # fmt: skip


def hunyuan_inputs(batch: int, grid: TokenGrid) -> dict[str, Any]:
    frames, height, width = grid
    mask = torch.ones(batch, TEXT)
    mask[0, -2:] = 0
    return {
        "hidden_states": noise(batch, 4, frames, 2 * height, 2 * width),
        "timestep": torch.full((batch,), 500.0),
        "encoder_hidden_states": noise(batch, TEXT, 16, seed=2),
        "encoder_attention_mask": mask,
        "pooled_projections": noise(batch, 16, seed=3),
        "guidance": torch.full((batch,), 6.0),
        "return_dict": False,
    }


def ltx() -> nn.Module:
    return diffusers.LTXVideoTransformer3DModel(
        in_channels=4, out_channels=4, num_attention_heads=2, attention_head_dim=12, cross_attention_dim=24,
        num_layers=2, caption_channels=16,
    )  # fmt: skip


def ltx_inputs(batch: int, grid: TokenGrid) -> dict[str, Any]:
    frames, height, width = grid
    return {
        "hidden_states": noise(batch, tokens_on(grid), 4),
        "encoder_hidden_states": noise(batch, TEXT, 16, seed=2),
        "timestep": torch.full((batch,), 500.0),
        "encoder_attention_mask": torch.ones(batch, TEXT),
        "num_frames": frames,
        "height": height,
        "width": width,
        "return_dict": False,
    }


def cogvideox() -> nn.Module:
    return diffusers.CogVideoXTransformer3DModel(
        num_attention_heads=2, attention_head_dim=16, in_channels=4, out_channels=4, time_embed_dim=16,
        text_embed_dim=16, num_layers=2, sample_width=16, sample_height=16, sample_frames=5, patch_size=2,
        max_text_seq_length=TEXT, use_rotary_positional_embeddings=True,
    )  # fmt: skip


def cogvideox_inputs(batch: int, grid: TokenGrid) -> dict[str, Any]:
    frames, height, width = grid
    angle = torch.arange(tokens_on(grid))[:, None] * torch.linspace(0.01, 1, 16)
    return {
        "hidden_states": noise(batch, frames, 4, 2 * height, 2 * width),
        "encoder_hidden_states": noise(batch, TEXT, 16, seed=2),
        "timestep": torch.full((batch,), 500),
        "image_rotary_emb": (angle.cos(), angle.sin()),
        "return_dict": False,
    }


VIDEOS: dict[str, Video] = {
    "wan": Video("wan2.1-t2v-14b", seeded(wan), wan_inputs),
    "wan-image": Video(
        "wan2.1-i2v-14b", seeded(lambda: wan(image_dim=20, added_kv_proj_dim=24)), wan_image_inputs, 512
    ),
    "wan-timed": Video("wan2.2-ti2v-5b", seeded(wan), wan_timed_inputs),
    "wan-keys": Video("wan2.1-t2v-14b-keys", seeded(wan), wan_inputs),
    "hunyuan": Video("hunyuan-video", seeded(hunyuan), hunyuan_inputs),
    "hunyuan-keys": Video("hunyuan-video-keys", seeded(hunyuan), hunyuan_inputs),
    "ltx": Video("ltx-video", seeded(ltx), ltx_inputs),
    "cogvideox": Video("cogvideox-5b", seeded(cogvideox), cogvideox_inputs),
}
