from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from diffusers import FlowMatchEulerDiscreteScheduler, FlowMatchHeunDiscreteScheduler
from PIL import Image

from sdtm_fx.errors import SdtmFxError
from sdtm_fx.toy.pipeline import ToySD3Pipeline
from tests.evaluate.tiny import tiny_pipeline

PROMPT = "a large plain red circle at the centre on a plain blue background"


@pytest.fixture(scope="module")
def pipe() -> ToySD3Pipeline:
    return tiny_pipeline()


def draw(pipe: ToySD3Pipeline, prompt: Any = PROMPT, **kwargs: Any) -> Any:
    settings = {"height": 8, "width": 12, "num_inference_steps": 3, "output_type": "latent"} | kwargs
    settings.setdefault("generator", torch.Generator().manual_seed(0))
    return pipe(prompt, **settings).images


def test_equal_generators_give_equal_images(pipe: ToySD3Pipeline) -> None:
    assert torch.equal(draw(pipe), draw(pipe))
    assert not torch.equal(draw(pipe), draw(pipe, generator=torch.Generator().manual_seed(1)))
    state = torch.random.get_rng_state()
    draw(pipe)
    assert torch.equal(state, torch.random.get_rng_state())


def test_one_generator_per_image_makes_images_independent_of_the_batch(pipe: ToySD3Pipeline) -> None:
    both = draw(pipe, [PROMPT] * 2, generator=[torch.Generator().manual_seed(s) for s in (3, 4)])
    alone = draw(pipe, PROMPT, generator=torch.Generator().manual_seed(4))
    assert torch.allclose(both[1:], alone, atol=1e-5)


def test_given_latents_are_the_starting_noise(pipe: ToySD3Pipeline) -> None:
    noise = torch.randn(1, 3, 8, 12, generator=torch.Generator().manual_seed(0))
    kept = noise.clone()
    assert torch.equal(draw(pipe, latents=noise), draw(pipe))
    assert torch.equal(noise, kept)


def test_output_types(pipe: ToySD3Pipeline) -> None:
    pictures = draw(pipe, [PROMPT, ""], output_type="pil")
    assert len(pictures) == 2
    assert isinstance(pictures[0], Image.Image)
    assert pictures[0].size == (12, 8)
    tensor, array, latent = (draw(pipe, output_type=kind) for kind in ("pt", "np", "latent"))
    assert tensor.shape == (1, 3, 8, 12)
    assert array.shape == (1, 8, 12, 3)
    assert isinstance(array, np.ndarray)
    assert torch.allclose(tensor, (latent / 2 + 0.5).clamp(0, 1))
    assert np.allclose(array, tensor.permute(0, 2, 3, 1).numpy())


def test_a_tuple_in_place_of_the_output_object(pipe: ToySD3Pipeline) -> None:
    result = pipe(PROMPT, height=8, width=8, num_inference_steps=1, return_dict=False)
    assert isinstance(result, tuple)
    assert isinstance(result[0][0], Image.Image)


def test_the_default_size_is_64_pixels(pipe: ToySD3Pipeline) -> None:
    assert pipe(PROMPT, num_inference_steps=1).images[0].size == (64, 64)


def test_guidance_runs_one_batch_with_the_negative_half_first(pipe: ToySD3Pipeline) -> None:
    calls: list[dict[str, Any]] = []
    hook = pipe.transformer.register_forward_pre_hook(
        lambda _, __, kwargs: calls.append(kwargs), with_kwargs=True
    )
    draw(pipe, ["a red circle", "a blue star"], negative_prompt="a green cross", guidance_scale=3.0)
    hook.remove()
    negative = pipe.text_encoder.encode(["a green cross"], 8, 12).encoder_hidden_states
    positive = pipe.text_encoder.encode(["a red circle", "a blue star"], 8, 12).encoder_hidden_states
    assert len(calls) == 3
    assert pipe.do_classifier_free_guidance
    assert pipe.num_timesteps == 3
    assert pipe.guidance_scale == 3.0
    for call, timestep in zip(calls, pipe.scheduler.timesteps, strict=True):
        assert call["timestep"].tolist() == [timestep.item()] * 4
        assert torch.equal(call["hidden_states"][:2], call["hidden_states"][2:])
        assert torch.allclose(call["encoder_hidden_states"][:2], negative.expand(2, -1, -1), atol=1e-6)
        assert torch.allclose(call["encoder_hidden_states"][2:], positive, atol=1e-6)


def test_without_guidance_the_batch_is_single(pipe: ToySD3Pipeline) -> None:
    sizes: list[int] = []
    hook = pipe.transformer.register_forward_pre_hook(
        lambda _, __, kwargs: sizes.append(kwargs["hidden_states"].shape[0]), with_kwargs=True
    )
    draw(pipe, guidance_scale=1.0)
    hook.remove()
    assert sizes == [1, 1, 1]
    assert not pipe.do_classifier_free_guidance


def test_guidance_is_a_line_through_both_predictions(pipe: ToySD3Pipeline) -> None:
    start = torch.randn(1, 3, 8, 12, generator=torch.Generator().manual_seed(0))
    one, two, three = (
        draw(pipe, guidance_scale=scale, num_inference_steps=1, latents=start) for scale in (1.0, 2.0, 3.0)
    )
    assert not torch.allclose(one, two)
    assert torch.allclose(three - two, two - one, atol=1e-5)


def test_the_callback_sees_and_replaces_tensors(pipe: ToySD3Pipeline) -> None:
    seen: list[tuple[int, float]] = []

    def zero(owner: ToySD3Pipeline, step: int, timestep: Any, tensors: dict[str, Any]) -> dict[str, Any]:
        assert owner is pipe
        assert set(tensors) == {"latents", "prompt_embeds"}
        seen.append((step, timestep.item()))
        return {"latents": torch.zeros_like(tensors["latents"])} if step == 2 else {}

    image = draw(
        pipe, callback_on_step_end=zero, callback_on_step_end_tensor_inputs=["latents", "prompt_embeds"]
    )
    assert [step for step, _ in seen] == [0, 1, 2]
    assert [time for _, time in seen] == pipe.scheduler.timesteps.tolist()
    assert not image.any()


def test_a_callback_can_stop_the_loop(pipe: ToySD3Pipeline) -> None:
    steps: list[int] = []

    def stop(owner: ToySD3Pipeline, step: int, timestep: Any, tensors: dict[str, Any]) -> dict[str, Any]:
        steps.append(step)
        owner._interrupt = True
        return tensors

    draw(pipe, callback_on_step_end=stop)
    assert steps == [0]
    draw(pipe)
    assert not pipe.interrupt


def test_the_pipeline_saves_and_loads(pipe: ToySD3Pipeline, tmp_path: Path) -> None:
    pipe.save_pretrained(tmp_path)
    again = ToySD3Pipeline.from_pretrained(tmp_path, low_cpu_mem_usage=False)
    again.set_progress_bar_config(disable=True)
    assert again.scheduler.config.shift == 2.0
    assert torch.equal(draw(pipe), draw(again))


@pytest.mark.parametrize(
    ("kwargs", "message"),
    [
        ({"height": 33}, "height 33 px is not accepted; it must be a multiple of 2 from 2 to 96"),
        ({"width": 31}, "width 31 px is not accepted"),
        ({"width": 98}, "width 98 px is not accepted"),
        ({"num_inference_steps": 0}, "num_inference_steps must be at least 1, found 0"),
        (
            {"output_type": "pill"},
            r"unknown output_type 'pill' \(did you mean 'pil'\?\); accepted: pil, pt, np, latent",
        ),
        (
            {"latents": torch.zeros(1, 3, 8, 8)},
            r"latents have shape \(1, 3, 8, 8\), expected \(1, 3, 8, 12\)",
        ),
        ({"generator": [torch.Generator()] * 2}, "2 generators for 1 images"),
        ({"negative_prompt": ["", ""]}, "2 negative prompts for 1 prompts"),
        ({"callback_on_step_end_tensor_inputs": ["latent"]}, r"'latent' \(did you mean 'latents'\?\)"),
        ({"prompt": "a red cirle"}, r"'cirle', is not in the toy's vocabulary \(did you mean 'circle'\?\)"),
    ],
)
def test_wrong_arguments_say_what_is_accepted(
    pipe: ToySD3Pipeline, kwargs: dict[str, Any], message: str
) -> None:
    with pytest.raises(SdtmFxError, match=message):
        draw(pipe, **kwargs)


def test_no_step_is_idle() -> None:
    pipe = tiny_pipeline()
    pipe.scheduler = FlowMatchEulerDiscreteScheduler(shift=2.0)
    draw(pipe, num_inference_steps=4)
    assert pipe.scheduler.sigmas.tolist() == pytest.approx([1, 6 / 7, 2 / 3, 2 / 5, 0])
    assert pipe.num_timesteps == 4


def test_a_scheduler_that_takes_no_sigmas_lays_out_its_own() -> None:
    pipe = tiny_pipeline()
    pipe.scheduler = FlowMatchHeunDiscreteScheduler()
    images = draw(pipe, num_inference_steps=3)
    assert torch.isfinite(images).all()
    assert pipe.num_timesteps == 5, "two calls a step but the last"
