"""The toy transformer: diffusers' own SD3 class, small, in pixel space."""

from __future__ import annotations

import torch
from diffusers import SD3Transformer2DModel
from torch import nn

from sdtm_fx.errors import SdtmFxError

PATCH = 2
"""Pixels per token side."""

MAX_TOKENS_PER_SIDE = 48
"""Largest number of tokens along height or width."""

TEXT_WIDTH = 64
"""Width of the caption encoder's rows, per word and pooled."""


def build_transformer(
    seed: int = 0, *, num_layers: int = 6, num_heads: int = 4, head_dim: int = 32
) -> SD3Transformer2DModel:
    """Build an untrained toy transformer (about 3.5 M parameters at the defaults).

    Token positions are one unit apart at every resolution, because `sample_size` is the largest grid.
    Modulations and the output projection start at zero, so that training starts from the identity (DiT,
    Peebles & Xie 2023, section 3.2).

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
            in_channels=3,
            out_channels=3,
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
    modulations = [block.norm1.linear for block in blocks] + [block.norm1_context.linear for block in blocks]
    for layer in (*modulations, model.norm_out.linear, model.proj_out):
        nn.init.zeros_(layer.weight)
        nn.init.zeros_(layer.bias)
    return model


def check_size(height: int, width: int) -> None:
    """Raise unless a height and width in pixels make a token grid that the toy accepts.

    Args:
        height: Pixels.
        width: Pixels.

    Raises:
        SdtmFxError: If a side is not a positive multiple of `PATCH`, or exceeds `MAX_TOKENS_PER_SIDE` tokens.
    """
    for name, pixels in (("height", height), ("width", width)):
        if pixels < PATCH or pixels % PATCH or pixels > PATCH * MAX_TOKENS_PER_SIDE:
            raise SdtmFxError(
                f"toy: {name} {pixels} px is not accepted; it must be a multiple of {PATCH} from {PATCH} to "
                f"{PATCH * MAX_TOKENS_PER_SIDE}"
            )
