"""The FLUX toy: diffusers' own class with rotary positions, double and single blocks, in pixel space."""

from __future__ import annotations

import torch
from diffusers import FluxTransformer2DModel
from torch import Tensor

from sdtm_fx.toy.model import IMAGE_CHANNELS, PATCH, TEXT_WIDTH, start_from_identity

_ROPE_SHARES = (4, 14, 14)
"""Channels of a head that turn with stream, row and column; FLUX's own shares are 16, 56, 56 of 128."""


def build_flux(seed: int = 0, *, num_layers: int = 2, num_single_layers: int = 4) -> FluxTransformer2DModel:
    """Build an untrained FLUX toy (width 128, 4 heads), without guidance embedding as FLUX.1-schnell.

    Args:
        seed: Seed of the initial weights; the global generator is left untouched.
        num_layers: Double blocks.
        num_single_layers: Single blocks.
    """
    channels = IMAGE_CHANNELS * PATCH**2
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = FluxTransformer2DModel(
            patch_size=1,  # as in FLUX, the pipeline packs pixels into tokens
            in_channels=channels,
            out_channels=channels,
            num_layers=num_layers,
            num_single_layers=num_single_layers,
            attention_head_dim=sum(_ROPE_SHARES),
            num_attention_heads=4,
            joint_attention_dim=TEXT_WIDTH,
            pooled_projection_dim=TEXT_WIDTH,
            axes_dims_rope=_ROPE_SHARES,
        )
    start_from_identity(block.norm1.linear for block in model.transformer_blocks)
    start_from_identity(block.norm1_context.linear for block in model.transformer_blocks)
    start_from_identity(block.norm.linear for block in model.single_transformer_blocks)
    start_from_identity((model.norm_out.linear, model.proj_out))
    return model


def pack(image: Tensor) -> Tensor:
    """Turn pixels into tokens, [B, 3, H, W] to [B, H/2 * W/2, 12], rows first."""
    batch, channels, height, width = image.shape
    rows, columns = height // PATCH, width // PATCH
    tiles = image.reshape(batch, channels, rows, PATCH, columns, PATCH)
    return tiles.permute(0, 2, 4, 1, 3, 5).reshape(batch, rows * columns, channels * PATCH**2)


def unpack(tokens: Tensor, height: int, width: int) -> Tensor:
    """Turn tokens back into pixels, the inverse of `pack`.

    Args:
        tokens: [B, H/2 * W/2, 12].
        height: H in pixels.
        width: W in pixels.
    """
    batch, _, size = tokens.shape
    rows, columns, channels = height // PATCH, width // PATCH, size // PATCH**2
    tiles = tokens.reshape(batch, rows, columns, channels, PATCH, PATCH)
    return tiles.permute(0, 3, 1, 4, 2, 5).reshape(batch, channels, height, width)


def image_ids(height: int, width: int, like: Tensor) -> Tensor:
    """Rotary positions (stream, row, column) of the tokens of an image, [H/2 * W/2, 3].

    Args:
        height: Pixels.
        width: Pixels.
        like: Gives dtype and device.
    """
    rows = torch.arange(height // PATCH, dtype=like.dtype, device=like.device)
    columns = torch.arange(width // PATCH, dtype=like.dtype, device=like.device)
    return torch.cartesian_prod(torch.zeros_like(rows[:1]), rows, columns)


def flux_velocity(
    transformer: FluxTransformer2DModel, noisy: Tensor, timestep: Tensor, words: Tensor, pooled: Tensor
) -> Tensor:
    """Predict noise - image.

    Args:
        transformer: The model.
        noisy: [B, 3, H, W].
        timestep: [B] in [0, 1000].
        words: [B, L, D], one row per word.
        pooled: [B, P], one row per caption.
    """
    height, width = noisy.shape[-2:]
    velocity: Tensor = transformer(
        hidden_states=pack(noisy),
        timestep=timestep / 1000,
        encoder_hidden_states=words,
        pooled_projections=pooled,
        img_ids=image_ids(height, width, like=noisy),
        txt_ids=noisy.new_zeros(words.shape[1], 3),
        return_dict=False,
    )[0]
    return unpack(velocity, height, width)
