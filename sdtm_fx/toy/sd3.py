"""The SD3 toy: diffusers' own class with learned-style 2-D positions and joint attention, in pixel space."""

from __future__ import annotations

import torch
from diffusers import SD3Transformer2DModel
from torch import Tensor

from sdtm_fx.toy.model import IMAGE_CHANNELS, MAX_TOKENS_PER_SIDE, PATCH, TEXT_WIDTH, start_from_identity


def build_sd3(
    seed: int = 0, *, num_layers: int = 6, num_heads: int = 4, head_dim: int = 32
) -> SD3Transformer2DModel:
    """Build an untrained SD3 toy (about 3.5 M parameters at the defaults).

    Token positions are one unit apart at every resolution, because `sample_size` is the largest grid.

    Args:
        seed: Seed of the initial weights; the global generator is left untouched.
        num_layers: Joint blocks.
        num_heads: Attention heads.
        head_dim: Channels per head.
    """
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = SD3Transformer2DModel(
            sample_size=MAX_TOKENS_PER_SIDE * PATCH,
            patch_size=PATCH,
            in_channels=IMAGE_CHANNELS,
            out_channels=IMAGE_CHANNELS,
            num_layers=num_layers,
            num_attention_heads=num_heads,
            attention_head_dim=head_dim,
            joint_attention_dim=TEXT_WIDTH,
            pooled_projection_dim=TEXT_WIDTH,
            caption_projection_dim=num_heads * head_dim,
            pos_embed_max_size=MAX_TOKENS_PER_SIDE,
            qk_norm="rms_norm",
        )
    blocks = model.transformer_blocks
    start_from_identity(block.norm1.linear for block in blocks)
    start_from_identity(block.norm1_context.linear for block in blocks)
    start_from_identity((model.norm_out.linear, model.proj_out))
    return model


def sd3_velocity(
    transformer: SD3Transformer2DModel, noisy: Tensor, timestep: Tensor, words: Tensor, pooled: Tensor
) -> Tensor:
    """Predict noise - image.

    Args:
        transformer: The model.
        noisy: [B, 3, H, W].
        timestep: [B] in [0, 1000].
        words: [B, L, D], one row per word.
        pooled: [B, P], one row per caption.
    """
    velocity: Tensor = transformer(
        hidden_states=noisy,
        timestep=timestep,
        encoder_hidden_states=words,
        pooled_projections=pooled,
        return_dict=False,
    )[0]
    return velocity
