"""The recipes for Stable Diffusion XL in its own pipeline: U-Net with skips, cross-attention, and two text encoders.

Prompt embeddings are given; the pooled one and the sizes go in as added conditioning, as the pipeline makes them.
"""

from __future__ import annotations

from typing import Any

import pytest
import torch
from diffusers import EulerDiscreteScheduler, StableDiffusionXLPipeline

import sdtm_fx
from tests.pipelines import tiny_vae
from tests.recipe.test_baselines import fitted
from tests.unets import TEXT_DIM, lengths, tiny_sdxl
from tests.user.cases import module_state

STEPS = 3
SIZE = (25, 31)
"""Latent; 13 x 16 and 7 x 8 tokens, rounded up."""
FINE, COARSE = 13 * 16, 7 * 8
SLOW = ("sdxl-turbo", "baselines/toma-sdxl", "baselines/toma-tile-sdxl", "baselines/at-edm-sdxl")


def pipeline(layers: int = 2) -> Any:
    """Every part but the text encoders, small and random."""
    pipe = StableDiffusionXLPipeline(
        vae=tiny_vae(scale_factor=8), text_encoder=None, text_encoder_2=None, tokenizer=None, tokenizer_2=None,
        unet=tiny_sdxl(layers=layers), scheduler=EulerDiscreteScheduler(),
    )  # fmt: skip
    pipe.set_progress_bar_config(disable=True)
    return pipe


def images(pipe: Any, guided: bool, size: tuple[int, int] = SIZE) -> torch.Tensor:
    """Two samples, as latents."""
    draw = torch.Generator().manual_seed(1)
    given = {
        "prompt_embeds": torch.randn(2, 5, TEXT_DIM, generator=draw),
        "pooled_prompt_embeds": torch.randn(2, 1280, generator=draw),
        "negative_prompt_embeds": torch.randn(2, 5, TEXT_DIM, generator=draw),
        "negative_pooled_prompt_embeds": torch.randn(2, 1280, generator=draw),
    }
    return pipe(
        **given, height=8 * size[0], width=8 * size[1], num_inference_steps=STEPS, generator=draw,
        guidance_scale=5.0 if guided else 1.0, output_type="latent",
    ).images  # fmt: skip


def rules(name: str, **changes: Any) -> sdtm_fx.Recipe:
    """The recipe, with every step merged and without forecasts."""
    dense = {"first_steps": 0, "last_steps": 0, "every_steps": None}
    # 0.7 is more than windows can remove of these grids.
    less = {"ratio.start": 0.6} if name == "sdxl" else {}
    return fitted(name, **{"keep_dense": dense, "reuse": None, "gate": "off", **less, **changes})


@pytest.mark.parametrize("name", ["sdxl", *(pytest.param(name, marks=pytest.mark.slow) for name in SLOW)])
def test_ratio_zero_and_restore_are_the_original_pipeline(name: str) -> None:
    pipe, guided = pipeline(layers=2 if "/" in name else 1), name != "sdxl-turbo"
    before, expected = module_state(pipe.unet), images(pipe, guided)
    with sdtm_fx.rewritten(pipe, rules(name, ratio={"curve": "constant", "start": 0.0})):
        assert torch.equal(images(pipe, guided), expected)
    with sdtm_fx.rewritten(pipe, rules(name)):
        merged = images(pipe, guided)
        assert torch.equal(images(pipe, guided), merged)
    assert merged.shape == (2, 4, *SIZE)
    assert bool(merged.isfinite().all())
    assert not torch.equal(merged, expected)
    assert module_state(pipe.unet) == before
    assert torch.equal(images(pipe, guided), expected)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "module", "gone"),
    [
        # Half of what attention runs on, in whole tiles or to the next pair; feed-forwards stay whole.
        ("baselines/toma-sdxl", ".attn1", 0.5),
        ("baselines/toma-sdxl", ".ff", 0.0),
        # 0.63 behind the first block of a transformer, in all that follows.
        ("baselines/at-edm-sdxl", ".transformer_blocks.1.attn2", 0.63),
        ("baselines/at-edm-sdxl", ".transformer_blocks.0.attn2", 0.0),
    ],
)
def test_modules_run_on_what_is_left_of_their_level(name: str, module: str, gone: float) -> None:
    pipe = pipeline()
    with sdtm_fx.rewritten(pipe, rules(name)), lengths(pipe.unet, module) as seen:
        images(pipe, guided=True)
    for path, count in seen.items():
        if "at-edm" in name and path.startswith("up_blocks.0.attentions.0"):
            continue  # which the spans of the small model leave out
        whole = FINE if path.startswith(("down_blocks.1", "up_blocks.1")) else COARSE
        assert whole - count == pytest.approx(gone * whole, abs=2), path
