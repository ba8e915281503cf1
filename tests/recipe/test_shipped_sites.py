"""The sites of the shipped recipes, against diffusers models with the released numbers of blocks."""

from __future__ import annotations

import functools
from collections.abc import Callable

import pytest
import torch
from diffusers import (
    CogVideoXTransformer3DModel,
    FluxTransformer2DModel,
    HunyuanVideoTransformer3DModel,
    LTXVideoTransformer3DModel,
    SD3Transformer2DModel,
    WanTransformer3DModel,
)
from torch import nn

from sdtm_fx.explaining.shapes import build_shape
from sdtm_fx.recipe import compile_match, list_recipes, load_recipe


def sd3(blocks: int, dual: int = 0) -> nn.Module:
    return SD3Transformer2DModel(
        sample_size=8,
        num_layers=blocks,
        attention_head_dim=8,
        num_attention_heads=1,
        joint_attention_dim=8,
        caption_projection_dim=8,
        pooled_projection_dim=8,
        pos_embed_max_size=8,
        dual_attention_layers=tuple(range(dual)),
        qk_norm="rms_norm",
    )


def flux() -> nn.Module:
    return FluxTransformer2DModel(
        num_layers=19,
        num_single_layers=38,
        attention_head_dim=16,
        num_attention_heads=1,
        joint_attention_dim=8,
        pooled_projection_dim=8,
        axes_dims_rope=(4, 6, 6),
    )


def wan(blocks: int) -> nn.Module:
    return WanTransformer3DModel(
        num_layers=blocks, num_attention_heads=1, attention_head_dim=12, text_dim=8, freq_dim=8, ffn_dim=8
    )


VIDEOS: dict[str, Callable[[], nn.Module]] = {
    "1.3b": lambda: wan(30),
    "wan": lambda: wan(40),
    "hunyuan-video": lambda: HunyuanVideoTransformer3DModel(
        num_layers=20, num_single_layers=40, num_attention_heads=1, attention_head_dim=16, rope_axes_dim=(4, 6, 6),
        text_embed_dim=8, pooled_projection_dim=8,
    ),
    "ltx-video": lambda: LTXVideoTransformer3DModel(
        num_layers=28, num_attention_heads=1, attention_head_dim=8, cross_attention_dim=8, caption_channels=8
    ),
    "cogvideox": lambda: CogVideoXTransformer3DModel(
        num_layers=42, num_attention_heads=1, attention_head_dim=16, text_embed_dim=8,
        use_rotary_positional_embeddings=True,
    ),
}  # fmt: skip
"""Video models with the released numbers of blocks."""


@functools.cache
def build(kind: str) -> nn.Module:
    with torch.device("meta"):
        if kind == "flux":
            return flux()
        if kind == "sdxl":
            return build_shape("sdxl")
        if kind in VIDEOS:
            return VIDEOS[kind]()
        if kind == "3.5-medium":
            return sd3(24, dual=13)
        return sd3(38 if kind == "large" else 24)


def model_of(recipe: str) -> nn.Module:
    return build(
        next((kind for kind in (*VIDEOS, "flux", "sdxl", "3.5-medium", "large") if kind in recipe), "sd3")
    )


@pytest.mark.parametrize("name", list_recipes())
def test_every_site_matches_as_often_as_expected(name: str) -> None:
    paths = [path for path, _ in model_of(name).named_modules()]
    for site in load_recipe(name).sites:
        matches = compile_match(site.match)
        found = sum(map(matches, paths))
        assert found == site.expect or (site.expect is None and found > 0), site.id
