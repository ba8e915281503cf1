"""Small random diffusers transformers of several families, with calls of any batch, grid and text length."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from diffusers import (
    AuraFlowTransformer2DModel,
    PixArtTransformer2DModel,
    SanaTransformer2DModel,
    WanTransformer3DModel,
)
from torch import nn

from tests.pipelines import POOLED_DIM, TEXT_DIM, randomize, tiny_flux_transformer, tiny_sd3_transformer

Inputs = Callable[[int, tuple[int, int], int], dict[str, Any]]


@dataclass(frozen=True)
class Family:
    """One family of models.

    Attributes:
        build: Makes a model.
        inputs: Makes the arguments of a call from batch, (height, width) in tokens, and text length.
        blocks: The module lists whose entries are the blocks.
    """

    build: Callable[[], nn.Module]
    inputs: Inputs
    blocks: tuple[str, ...]

    def block_paths(self, model: nn.Module) -> list[str]:
        return [f"{name}.{i}" for name in self.blocks for i in range(len(model.get_submodule(name)))]


def noise(*shape: int, seed: int = 1) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed + sum(shape)))


def latent_inputs(batch: int, grid: tuple[int, int], text: int, *, patch: int = 2) -> dict[str, Any]:
    """What most models take: a latent, text, a timestep."""
    return {
        "hidden_states": noise(batch, 4, grid[0] * patch, grid[1] * patch),
        "encoder_hidden_states": noise(batch, text, TEXT_DIM),
        "timestep": torch.full((batch,), 500.0),
        "return_dict": False,
    }


def sd3_inputs(batch: int, grid: tuple[int, int], text: int) -> dict[str, Any]:
    return latent_inputs(batch, grid, text) | {"pooled_projections": noise(batch, POOLED_DIM)}


def flux_inputs(batch: int, grid: tuple[int, int], text: int) -> dict[str, Any]:
    ids = torch.zeros(*grid, 3)
    ids[..., 1] += torch.arange(grid[0])[:, None]
    ids[..., 2] += torch.arange(grid[1])
    return {
        "hidden_states": noise(batch, grid[0] * grid[1], 16),
        "encoder_hidden_states": noise(batch, text, TEXT_DIM),
        "pooled_projections": noise(batch, POOLED_DIM),
        "timestep": torch.full((batch,), 0.5),
        "guidance": torch.full((batch,), 3.5),
        "img_ids": ids.reshape(-1, 3),
        "txt_ids": torch.zeros(text, 3),
        "return_dict": False,
    }


def _pixart_inputs(batch: int, grid: tuple[int, int], text: int) -> dict[str, Any]:
    sizes = {"resolution": None, "aspect_ratio": None}
    mask = {"encoder_attention_mask": torch.ones(batch, text)}
    return latent_inputs(batch, grid, text) | mask | {"added_cond_kwargs": sizes}


def _sana_inputs(batch: int, grid: tuple[int, int], text: int) -> dict[str, Any]:
    return latent_inputs(batch, grid, text, patch=1) | {"encoder_attention_mask": torch.ones(batch, text)}


def _wan_inputs(batch: int, grid: tuple[int, int], text: int) -> dict[str, Any]:
    video = {"hidden_states": noise(batch, 4, 2, grid[0] * 2, grid[1] * 2)}
    return latent_inputs(batch, grid, text) | video | {"timestep": torch.full((batch,), 500)}


def pixart(layers: int = 2, sized: bool = False) -> nn.Module:
    """Cross-attention beside self-attention; diffusers compiles none of its blocks by itself. The model of 1024 px is
    told the size of the image (`sized`)."""
    heads = 3 if sized else 2  # height, width and aspect ratio share the width
    return PixArtTransformer2DModel(
        sample_size=8, num_layers=layers, patch_size=2, attention_head_dim=8, num_attention_heads=heads,
        caption_channels=32, in_channels=4, cross_attention_dim=8 * heads, out_channels=8,
        norm_type="ada_norm_single",
        norm_elementwise_affine=False, use_additional_conditions=sized,
    )  # fmt: skip


def _auraflow() -> nn.Module:
    return AuraFlowTransformer2DModel(
        sample_size=16, patch_size=2, in_channels=4, num_mmdit_layers=1, num_single_dit_layers=2,
        attention_head_dim=8, num_attention_heads=2, joint_attention_dim=32, caption_projection_dim=16,
        out_channels=4, pos_embed_max_size=400,
    )  # fmt: skip


def _sana() -> nn.Module:
    return SanaTransformer2DModel(
        in_channels=4, out_channels=4, num_attention_heads=2, attention_head_dim=8, num_layers=2,
        num_cross_attention_heads=2, cross_attention_head_dim=8, cross_attention_dim=16, caption_channels=32,
        sample_size=8,
    )  # fmt: skip


def _wan() -> nn.Module:
    return WanTransformer3DModel(
        patch_size=(1, 2, 2), num_attention_heads=2, attention_head_dim=12, in_channels=4, out_channels=4,
        text_dim=32, freq_dim=32, ffn_dim=32, num_layers=2, rope_max_seq_len=32,
    )  # fmt: skip


def sd35_medium(layers: int = 3) -> nn.Module:
    """Dual attention in all but the last two blocks."""
    return tiny_sd3_transformer(
        layers=layers, dual_attention_layers=tuple(range(layers - 2)), qk_norm="rms_norm"
    )


ZOO: dict[str, Family] = {
    "sd3": Family(lambda: tiny_sd3_transformer(layers=2), sd3_inputs, ("transformer_blocks",)),
    "sd3.5": Family(sd35_medium, sd3_inputs, ("transformer_blocks",)),
    "flux": Family(
        lambda: tiny_flux_transformer(layers=2, single_layers=2),
        flux_inputs,
        ("transformer_blocks", "single_transformer_blocks"),
    ),
    "pixart": Family(pixart, _pixart_inputs, ("transformer_blocks",)),
    "auraflow": Family(_auraflow, latent_inputs, ("joint_transformer_blocks", "single_transformer_blocks")),
    "sana": Family(_sana, _sana_inputs, ("transformer_blocks",)),
    "wan": Family(_wan, _wan_inputs, ("blocks",)),
}


def build(name: str) -> nn.Module:
    """A random model of a family, in eval mode."""
    return randomize(ZOO[name].build())
