"""Wan 2.2 TI2V in its own pipeline: a given image, and a time for every token, as the pipeline makes them."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from diffusers import AutoencoderKLWan, UniPCMultistepScheduler, WanImageToVideoPipeline

import sdtm_fx
from tests.families.video import noise, seeded, wan
from tests.pipelines import randomize

STEPS = 6
FRAME = 4 * 4
"""Tokens of a latent frame; there are three."""


def pipeline() -> Any:
    """Every part but the text encoder, small and random."""
    vae = AutoencoderKLWan(
        base_dim=3, z_dim=4, dim_mult=[1, 1, 1, 1], num_res_blocks=1, temperal_downsample=[False, True, True],
        latents_mean=[0.0] * 4, latents_std=[1.0] * 4,
    )  # fmt: skip
    scheduler = UniPCMultistepScheduler(
        prediction_type="flow_prediction", use_flow_sigmas=True, num_train_timesteps=1000, flow_shift=3.0
    )
    pipe = WanImageToVideoPipeline(
        tokenizer=None, text_encoder=None, vae=randomize(vae), scheduler=scheduler, transformer=seeded(wan)(),
        expand_timesteps=True,
    )  # fmt: skip
    pipe.set_progress_bar_config(disable=True)
    return pipe


def video(pipe: Any) -> torch.Tensor:
    """Latents of 9 frames of 64 x 64 pixels."""
    return pipe(
        image=noise(1, 3, 64, 64).clamp(-1, 1), prompt_embeds=noise(1, 7, 16, seed=2),
        negative_prompt_embeds=noise(1, 7, 16, seed=3), height=64, width=64, num_frames=9, num_inference_steps=STEPS,
        guidance_scale=3.0, generator=torch.Generator().manual_seed(1), output_type="latent",
    ).frames  # fmt: skip


def rules(**changes: Any) -> sdtm_fx.Recipe:
    small = {"sites.*.expect": None, "plan.round_to": 1, "gate": "off"}
    return sdtm_fx.load_recipe("wan2.2-ti2v-5b").override(small | changes)


@pytest.mark.slow
def test_a_given_image_stays_whole_and_every_token_has_its_time() -> None:
    pipe = pipeline()
    dense, seen, times = video(pipe), [], []
    ffn = pipe.transformer.blocks[0].ffn
    handles = [
        ffn.register_forward_pre_hook(lambda _, args: seen.append(args[0].shape[1])),
        pipe.transformer.register_forward_pre_hook(
            lambda _, args, kwargs: times.append(kwargs["timestep"]), with_kwargs=True
        ),
    ]
    with sdtm_fx.rewritten(pipe, rules(ratio={"curve": "constant", "start": 0.0})):
        assert torch.equal(video(pipe), dense)
    seen.clear()
    with sdtm_fx.rewritten(pipe, rules()), sdtm_fx.record_plans(pipe) as record:
        merged = video(pipe)
    for handle in handles:
        handle.remove()
    assert all(time.shape == (1, 3 * FRAME) for time in times)
    assert all((time[:, :FRAME] == 0).all() and (time[:, FRAME:] > 0).all() for time in times)
    assert {site.grid for site in record.at(action="merged")} == {(2, 4, 4)}
    # The first and the last step are dense; guidance calls twice.
    kept = {site.step: FRAME + site.kept for site in record.at(action="merged", block="blocks.0")}
    assert sorted(kept) == [1, 2, 3, 4]
    assert seen == [kept.get(step, 3 * FRAME) for step in range(STEPS) for _ in range(2)]
    assert min(kept.values()) < 3 * FRAME
    assert not torch.equal(merged, dense)
    assert torch.equal(video(pipe), dense)
