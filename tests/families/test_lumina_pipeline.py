"""Lumina 2 in its own pipeline: guidance halves are calls of their own, and their prompts have other lengths."""

from __future__ import annotations

from typing import Any

import torch
from diffusers import FlowMatchEulerDiscreteScheduler, Lumina2Pipeline

import sdtm_fx
from tests.families.cases import FAMILIES, FamilyCase, noise
from tests.pipelines import TEXT_DIM

STEPS, LENGTH = 6, 9


def case() -> FamilyCase:
    return next(case for case in FAMILIES if case.name == "lumina-2")


def pipeline() -> Any:
    """The model, small and random; prompts come embedded, and latents are what is looked at."""
    pipe = Lumina2Pipeline(
        transformer=case().model(), scheduler=FlowMatchEulerDiscreteScheduler(), vae=None, text_encoder=None,
        tokenizer=None,
    )  # fmt: skip
    pipe.set_progress_bar_config(disable=True)
    return pipe


def latents(pipe: Any, *lengths: int) -> torch.Tensor:
    """Latents of 8 x 6 tokens for a prompt and a negative prompt of these lengths, padded to one."""
    prompt, negative = (noise(1, LENGTH, TEXT_DIM, seed=length) for length in lengths)
    mask, negative_mask = ((torch.arange(LENGTH) < length)[None].long() for length in lengths)
    return pipe(
        prompt_embeds=prompt, prompt_attention_mask=mask, negative_prompt_embeds=negative,
        negative_prompt_attention_mask=negative_mask, height=128, width=96, num_inference_steps=STEPS,
        guidance_scale=3.0, generator=torch.Generator().manual_seed(0), output_type="latent",
    ).images  # fmt: skip


def test_the_pipeline_merges_behind_prompts_of_any_length() -> None:
    pipe, lengths = pipeline(), set()
    dense = [latents(pipe, 7, 4), latents(pipe, 3, 9)]
    sdtm_fx.rewrite(pipe, case().recipe(0.0))
    assert torch.equal(latents(pipe, 7, 4), dense[0])
    sdtm_fx.rewrite(pipe, case().recipe(0.5, reuse=True))
    hook = pipe.transformer.layers[0].feed_forward.register_forward_pre_hook(
        lambda module, args: lengths.add(args[0].shape[1]) if type(args[0]) is torch.Tensor else None
    )
    merged = [latents(pipe, 7, 4), latents(pipe, 3, 9)]
    hook.remove()
    assert lengths == {image + prompt for image in (48, 24) for prompt in (7, 4, 3, 9)}
    assert all(not torch.equal(a, b) for a, b in zip(merged, dense, strict=True))
    assert torch.equal(latents(pipe, 7, 4), merged[0]), "a generation leaves nothing behind"
    sdtm_fx.restore(pipe)
    assert torch.equal(latents(pipe, 3, 9), dense[1])
