"""The toys as diffusers pipelines: they behave like SD3's and FLUX's, in pixel space."""

from __future__ import annotations

import inspect
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
from diffusers import (
    DiffusionPipeline,
    FlowMatchEulerDiscreteScheduler,
    FluxTransformer2DModel,
    SD3Transformer2DModel,
)
from diffusers.image_processor import VaeImageProcessor
from diffusers.pipelines.pipeline_utils import ImagePipelineOutput
from diffusers.utils.torch_utils import randn_tensor
from PIL import Image
from torch import Tensor

from sdtm_fx.errors import SdtmFxError, nearest
from sdtm_fx.toy.captions import CaptionEncoder
from sdtm_fx.toy.flux import flux_velocity
from sdtm_fx.toy.model import IMAGE_CHANNELS, check_size
from sdtm_fx.toy.sd3 import sd3_velocity

OUTPUT_TYPES = ("pil", "pt", "np", "latent")
"""PIL images; [B, 3, H, W] in [0, 1]; [B, H, W, 3] in [0, 1]; [B, 3, H, W] as denoised, not clamped."""

DEFAULT_SIZE = 64
"""Height and width in pixels when none is given: 32 x 32 tokens."""

StepEnd = Callable[["ToyPipeline", int, Tensor, dict[str, Tensor]], dict[str, Tensor]]


class ToyPipeline(DiffusionPipeline, ABC):
    """Text to image with a toy transformer; each toy's class says how its transformer is called.

    Args:
        transformer: The trained model.
        text_encoder: The caption encoder that was trained with it.
        scheduler: Any flow-matching scheduler of diffusers.
    """

    model_cpu_offload_seq = "text_encoder->transformer"
    default_guidance_scale = 1.0
    """Guidance of a call that names none."""
    _callback_tensor_inputs = ("latents", "prompt_embeds", "pooled_prompt_embeds")

    transformer: Any
    text_encoder: CaptionEncoder
    scheduler: FlowMatchEulerDiscreteScheduler

    def __init__(
        self, transformer: Any, text_encoder: CaptionEncoder, scheduler: FlowMatchEulerDiscreteScheduler
    ) -> None:
        super().__init__()
        self.register_modules(transformer=transformer, text_encoder=text_encoder, scheduler=scheduler)
        self.image_processor = VaeImageProcessor(vae_scale_factor=1)
        self._guidance_scale = 1.0
        self._num_timesteps = 0
        self._interrupt = False

    @abstractmethod
    def predict_velocity(self, noisy: Tensor, timestep: Tensor, words: Tensor, pooled: Tensor) -> Tensor:
        """Call the transformer: noise - image, [B, 3, H, W].

        Args:
            noisy: [B, 3, H, W].
            timestep: [B] in [0, 1000].
            words: [B, L, D], one row per word.
            pooled: [B, P], one row per caption.
        """

    @property
    def guidance_scale(self) -> float:
        """Guidance scale of the current or last call."""
        return self._guidance_scale

    @property
    def do_classifier_free_guidance(self) -> bool:
        """Whether the current or last call runs a negative half beside the positive one."""
        return self._guidance_scale > 1

    @property
    def num_timesteps(self) -> int:
        """Denoising steps of the current or last call."""
        return self._num_timesteps

    @property
    def interrupt(self) -> bool:
        """Set `pipe._interrupt = True` in a callback to stop after the current step."""
        return self._interrupt

    def encode_prompt(
        self, prompt: Sequence[str], negative_prompt: Sequence[str], height: int, width: int
    ) -> tuple[Tensor, Tensor]:
        """Encode captions, the negative ones first where guidance is on.

        Args:
            prompt: B captions.
            negative_prompt: B captions; not read without guidance.
            height: Pixels of the images.
            width: Pixels of the images.

        Returns:
            Rows per word [B or 2B, L, D] and per caption [B or 2B, P].
        """
        dtype = self.transformer.dtype
        words, pooled = self.text_encoder.encode(prompt, height, width)
        if self.do_classifier_free_guidance:
            negative_words, negative_pooled = self.text_encoder.encode(negative_prompt, height, width)
            words, pooled = torch.cat([negative_words, words]), torch.cat([negative_pooled, pooled])
        return words.to(dtype), pooled.to(dtype)

    def prepare_latents(
        self,
        shape: tuple[int, int, int, int],
        generator: torch.Generator | list[torch.Generator] | None,
        latents: Tensor | None,
    ) -> Tensor:
        """Draw the starting noise, or check the noise that was given.

        Args:
            shape: (B, 3, H, W).
            generator: One for the batch, or one per image.
            latents: Noise to start from, of that shape.

        Raises:
            SdtmFxError: If `latents` has another shape, or there are not as many generators as images.
        """
        device, dtype = self._execution_device, self.transformer.dtype
        if latents is not None:
            if tuple(latents.shape) != shape:
                raise SdtmFxError(f"toy: latents have shape {tuple(latents.shape)}, expected {shape}")
            return latents.to(device=device, dtype=dtype)
        if isinstance(generator, list) and len(generator) != shape[0]:
            raise SdtmFxError(
                f"toy: {len(generator)} generators for {shape[0]} images; pass one, or one per image"
            )
        noise: Tensor = randn_tensor(shape, generator=generator, device=device, dtype=dtype)
        return noise

    @torch.no_grad()
    def __call__(
        self,
        prompt: str | list[str],
        height: int | None = None,
        width: int | None = None,
        num_inference_steps: int = 28,
        guidance_scale: float | None = None,
        negative_prompt: str | list[str] | None = None,
        generator: torch.Generator | list[torch.Generator] | None = None,
        latents: Tensor | None = None,
        output_type: str = "pil",
        return_dict: bool = True,
        callback_on_step_end: StepEnd | None = None,
        callback_on_step_end_tensor_inputs: Sequence[str] = ("latents",),
    ) -> ImagePipelineOutput | tuple[list[Image.Image] | np.ndarray | Tensor]:
        """Draw images.

        Args:
            prompt: One caption, or a list of B.
            height: Pixels, even; 64 where not given.
            width: Pixels, even; 64 where not given.
            num_inference_steps: Denoising steps, at least 1.
            guidance_scale: Above 1, both halves run as one batch, negative first, as in diffusers;
                `default_guidance_scale` of the class where not given.
            negative_prompt: What to steer away from; the empty caption where not given.
            generator: One for the batch, or one per image.
            latents: [B, 3, height, width] noise to start from.
            output_type: One of `OUTPUT_TYPES`.
            return_dict: Return `ImagePipelineOutput` instead of a tuple.
            callback_on_step_end: Called as (pipeline, step, timestep, tensors) after each step; what it
                returns replaces the tensors of the same name.
            callback_on_step_end_tensor_inputs: Names of the tensors that the callback gets.

        Raises:
            SdtmFxError: If an argument is not accepted; the text says what is.
        """
        height, width = height or DEFAULT_SIZE, width or DEFAULT_SIZE
        prompts = [prompt] if isinstance(prompt, str) else list(prompt)
        negatives = _negatives(negative_prompt, len(prompts))
        self._check(height, width, num_inference_steps, output_type, callback_on_step_end_tensor_inputs)
        self._interrupt = False
        self._guidance_scale = self.default_guidance_scale if guidance_scale is None else guidance_scale
        prompt_embeds, pooled_prompt_embeds = self.encode_prompt(prompts, negatives, height, width)
        shape = (len(prompts), IMAGE_CHANNELS, height, width)
        tensors = {
            "latents": self.prepare_latents(shape, generator, latents),
            "prompt_embeds": prompt_embeds,
            "pooled_prompt_embeds": pooled_prompt_embeds,
        }
        timesteps = self._lay_out_times(num_inference_steps)
        self._num_timesteps = len(timesteps)
        with self.progress_bar(total=num_inference_steps) as progress_bar:
            for step, timestep in enumerate(timesteps):
                if self.interrupt:
                    break
                tensors["latents"] = self._denoise(timestep, **tensors)
                if callback_on_step_end is not None:
                    chosen = {name: tensors[name] for name in callback_on_step_end_tensor_inputs}
                    tensors.update(callback_on_step_end(self, step, timestep, chosen) or {})
                progress_bar.update()
        images: Any = tensors["latents"]
        if output_type != "latent":
            images = self.image_processor.postprocess(images, output_type=output_type)
        self.maybe_free_model_hooks()
        return ImagePipelineOutput(images=images) if return_dict else (images,)

    def _lay_out_times(self, steps: int) -> Tensor:
        """Let the scheduler lay out the steps, with times that end at 1 / steps before they are shifted.

        As in FLUX's pipeline. Left alone, the flow-matching schedulers of diffusers end near zero, where nothing is
        left to denoise: one step in `steps` would be idle, and whatever approximates it would look good. Those that
        take no sigmas (Heun's) lay out their own.
        """
        settings: dict[str, Any] = {"num_inference_steps": steps}
        if "sigmas" in inspect.signature(self.scheduler.set_timesteps).parameters:
            settings = {"sigmas": np.linspace(1.0, 1 / steps, steps)}
        self.scheduler.set_timesteps(device=self._execution_device, **settings)
        times: Tensor = self.scheduler.timesteps
        return times

    def _denoise(
        self, timestep: Tensor, latents: Tensor, prompt_embeds: Tensor, pooled_prompt_embeds: Tensor
    ) -> Tensor:
        """Take one step: one transformer call for both halves, guidance, and the scheduler."""
        guided = self.do_classifier_free_guidance
        latent_model_input = torch.cat([latents] * 2) if guided else latents
        velocity = self.predict_velocity(
            latent_model_input,
            timestep.expand(latent_model_input.shape[0]),
            prompt_embeds,
            pooled_prompt_embeds,
        )
        if guided:
            negative, positive = velocity.chunk(2)
            velocity = negative + self.guidance_scale * (positive - negative)
        stepped: Tensor = self.scheduler.step(velocity, timestep, latents, return_dict=False)[0]
        return stepped.to(latents.dtype)

    def _check(
        self, height: int, width: int, steps: int, output_type: str, tensor_inputs: Sequence[str]
    ) -> None:
        check_size(height, width)
        if steps < 1:
            raise SdtmFxError(f"toy: num_inference_steps must be at least 1, found {steps}")
        if output_type not in OUTPUT_TYPES:
            raise SdtmFxError(
                f"toy: unknown output_type {output_type!r}{nearest(output_type, OUTPUT_TYPES)}; "
                f"accepted: {', '.join(OUTPUT_TYPES)}"
            )
        for name in tensor_inputs:
            if name not in self._callback_tensor_inputs:
                raise SdtmFxError(
                    f"toy: unknown callback tensor {name!r}{nearest(name, self._callback_tensor_inputs)}; "
                    f"accepted: {', '.join(self._callback_tensor_inputs)}"
                )


class ToySD3Pipeline(ToyPipeline):
    """The toy of SD3 blocks, with classifier-free guidance."""

    default_guidance_scale = 3.0
    transformer: SD3Transformer2DModel

    def predict_velocity(self, noisy: Tensor, timestep: Tensor, words: Tensor, pooled: Tensor) -> Tensor:
        """Call the transformer; see `ToyPipeline.predict_velocity`."""
        return sd3_velocity(self.transformer, noisy, timestep, words, pooled)


class ToyFluxPipeline(ToyPipeline):
    """The toy of FLUX blocks, without guidance unless a call asks for it."""

    transformer: FluxTransformer2DModel

    def predict_velocity(self, noisy: Tensor, timestep: Tensor, words: Tensor, pooled: Tensor) -> Tensor:
        """Call the transformer; see `ToyPipeline.predict_velocity`."""
        return flux_velocity(self.transformer, noisy, timestep, words, pooled)


def _negatives(negative_prompt: str | list[str] | None, count: int) -> list[str]:
    if negative_prompt is None or isinstance(negative_prompt, str):
        return [negative_prompt or ""] * count
    if len(negative_prompt) != count:
        raise SdtmFxError(
            f"toy: {len(negative_prompt)} negative prompts for {count} prompts; pass one, or one each"
        )
    return list(negative_prompt)
