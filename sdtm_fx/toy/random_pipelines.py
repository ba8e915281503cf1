"""Real diffusers pipelines around small random models: no downloads, no text encoders.

Pipeline, scheduler and model classes are diffusers' own, so what is tried here is what users run; only the
weights mean nothing. Calls take prompt embeddings. A four-step run of the defaults takes a few hundredths of
a second on one core. The pipeline classes need the `transformers` package.
"""

from __future__ import annotations

from typing import Any

import torch
from diffusers import (
    AutoencoderKL,
    FlowMatchEulerDiscreteScheduler,
    FluxPipeline,
    FluxTransformer2DModel,
    SD3Transformer2DModel,
    StableDiffusion3Pipeline,
)
from torch import nn

TEXT_TOKENS = 5
"""Rows of a prompt embedding."""

TEXT_DIM = 32
"""Width of a prompt embedding."""

POOLED_DIM = 32
"""Width of a pooled embedding."""


def randomize(module: nn.Module, seed: int = 0, scale: float = 0.05) -> nn.Module:
    """Fill every parameter of `module` with small seeded noise (zero-initialised gates too), in eval mode."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in module.parameters():
            noise = torch.randn(parameter.shape, generator=generator, dtype=torch.float32) * scale
            parameter.copy_(noise + 1.0 if _is_norm_weight(parameter) else noise)
    return module.eval().requires_grad_(False)


def _is_norm_weight(parameter: nn.Parameter) -> bool:
    return parameter.ndim == 1 and bool(torch.all(parameter == 1))


def tiny_vae(latent_channels: int = 4, scale_factor: int = 1) -> AutoencoderKL:
    """A one-resolution autoencoder; `scale_factor` pixels (a power of two) per latent in each direction."""
    levels = scale_factor.bit_length()
    vae = AutoencoderKL(
        block_out_channels=(8,) * levels,
        down_block_types=("DownEncoderBlock2D",) * levels,
        up_block_types=("UpDecoderBlock2D",) * levels,
        layers_per_block=1,
        norm_num_groups=4,
        latent_channels=latent_channels,
        use_quant_conv=False,
        use_post_quant_conv=False,
        mid_block_add_attention=False,
        scaling_factor=1.5,
        shift_factor=0.06,
    )
    return randomize(vae, seed=2)


def tiny_sd3_transformer(
    *,
    layers: int = 1,
    heads: int = 2,
    head_dim: int = 8,
    latent_size: int = 8,
    channels: int = 4,
    dual_attention_layers: tuple[int, ...] = (),
    qk_norm: str | None = None,
    seed: int = 0,
) -> SD3Transformer2DModel:
    """A random SD3 transformer, patch 2; `dual_attention_layers` and `qk_norm="rms_norm"` make it SD3.5."""
    model = SD3Transformer2DModel(
        sample_size=latent_size,
        patch_size=2,
        in_channels=channels,
        out_channels=channels,
        num_layers=layers,
        attention_head_dim=head_dim,
        num_attention_heads=heads,
        joint_attention_dim=TEXT_DIM,
        caption_projection_dim=heads * head_dim,
        pooled_projection_dim=POOLED_DIM,
        pos_embed_max_size=96,
        dual_attention_layers=dual_attention_layers,
        qk_norm=qk_norm,
    )
    return randomize(model, seed)


def tiny_flux_transformer(
    *,
    layers: int = 1,
    single_layers: int = 1,
    heads: int = 2,
    channels: int = 4,
    guidance: bool = True,
    seed: int = 0,
) -> FluxTransformer2DModel:
    """A random FLUX transformer with head width 16; `channels` are latent channels (packed 2 by 2)."""
    model = FluxTransformer2DModel(
        in_channels=4 * channels,
        num_layers=layers,
        num_single_layers=single_layers,
        attention_head_dim=16,
        num_attention_heads=heads,
        joint_attention_dim=TEXT_DIM,
        pooled_projection_dim=POOLED_DIM,
        guidance_embeds=guidance,
        axes_dims_rope=(4, 6, 6),
    )
    return randomize(model, seed)


def tiny_sd3_pipeline(
    *,
    layers: int = 1,
    dual_attention_layers: tuple[int, ...] = (),
    qk_norm: str | None = None,
    latent_size: int = 8,
    heads: int = 2,
    head_dim: int = 8,
    scheduler: Any = None,
    seed: int = 0,
) -> StableDiffusion3Pipeline:
    """`StableDiffusion3Pipeline` around `tiny_sd3_transformer`; default output is `latent_size` squared."""
    pipe = StableDiffusion3Pipeline(
        transformer=tiny_sd3_transformer(
            layers=layers,
            heads=heads,
            head_dim=head_dim,
            latent_size=latent_size,
            dual_attention_layers=dual_attention_layers,
            qk_norm=qk_norm,
            seed=seed,
        ),
        scheduler=FlowMatchEulerDiscreteScheduler(shift=3.0) if scheduler is None else scheduler,
        vae=tiny_vae(),
        text_encoder=None,
        tokenizer=None,
        text_encoder_2=None,
        tokenizer_2=None,
        text_encoder_3=None,
        tokenizer_3=None,
    )
    pipe.set_progress_bar_config(disable=True)
    return pipe


def tiny_flux_pipeline(
    *,
    guidance: bool = True,
    layers: int = 1,
    single_layers: int = 1,
    latent_size: int = 8,
    heads: int = 2,
    scheduler: Any = None,
    seed: int = 0,
) -> FluxPipeline:
    """`FluxPipeline` around `tiny_flux_transformer`; default output is `latent_size` squared (even)."""
    pipe = FluxPipeline(
        transformer=tiny_flux_transformer(
            layers=layers, single_layers=single_layers, heads=heads, guidance=guidance, seed=seed
        ),
        scheduler=FlowMatchEulerDiscreteScheduler(shift=3.0, use_dynamic_shifting=True)
        if scheduler is None
        else scheduler,
        vae=tiny_vae(),
        text_encoder=None,
        tokenizer=None,
        text_encoder_2=None,
        tokenizer_2=None,
    )
    pipe.default_sample_size = latent_size
    pipe.set_progress_bar_config(disable=True)
    return pipe


def sd3_prompt_kwargs(batch: int = 1, cfg: bool = True, seed: int = 1) -> dict[str, Any]:
    """Arguments of an SD3 pipeline call: prompt embeddings, guidance, a seeded generator, latent output."""
    embeds = _embeddings(batch, seed)
    kwargs = {
        "prompt_embeds": embeds[0],
        "pooled_prompt_embeds": embeds[1],
        "guidance_scale": 5.0 if cfg else 1.0,
        "generator": torch.Generator().manual_seed(seed),
        "output_type": "latent",
    }
    if cfg:
        kwargs |= {"negative_prompt_embeds": embeds[2], "negative_pooled_prompt_embeds": embeds[3]}
    return kwargs


def flux_prompt_kwargs(batch: int = 1, true_cfg: bool = False, seed: int = 1) -> dict[str, Any]:
    """Arguments of a FLUX pipeline call; `true_cfg` adds the second (negative) model call of each step."""
    embeds = _embeddings(batch, seed)
    kwargs = {
        "prompt_embeds": embeds[0],
        "pooled_prompt_embeds": embeds[1],
        "guidance_scale": 3.5,
        "generator": torch.Generator().manual_seed(seed),
        "output_type": "latent",
    }
    if true_cfg:
        kwargs |= {
            "negative_prompt_embeds": embeds[2],
            "negative_pooled_prompt_embeds": embeds[3],
            "true_cfg_scale": 2.0,
        }
    return kwargs


def _embeddings(batch: int, seed: int) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    shapes = [(batch, TEXT_TOKENS, TEXT_DIM), (batch, POOLED_DIM)] * 2
    prompt, pooled, negative, negative_pooled = (torch.randn(s, generator=generator) for s in shapes)
    return prompt, pooled, negative, negative_pooled
