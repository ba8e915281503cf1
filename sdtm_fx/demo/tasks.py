"""What the demonstration samples: a trained toy, and the real pipeline classes around random models."""

from __future__ import annotations

import functools
import itertools
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from sdtm_fx.demo.compare import Task
from sdtm_fx.recipe.load import load_recipe
from sdtm_fx.recipe.schema import Recipe
from sdtm_fx.toy.load import load_toy

PROMPTS: tuple[str, ...] = (
    "a large striped red circle at the centre on a plain blue background",
    "a large plain yellow star at the upper left on a purple-to-black gradient",
    "a medium checkered green square at the lower right on a plain white background",
    "a large plain white ring at the centre on a mottled orange-and-red background",
)
"""Captions in the language of the toy."""

_RANDOM_LATENT = 32  # 16 x 16 tokens of 2 x 2
_SEEDS = tuple(f"prompt embedding {seed}" for seed in range(3))  # the first image also builds graphs


TOY_RECIPES: Mapping[str, tuple[str, ...]] = {
    "sd3": ("toy-sd3", "sd3-medium-windows", "paper/sd3-medium"),
    "flux": ("toy-flux", "flux.1-dev-windows", "flux.1-dev-attention"),
}
"""By toy: the package's defaults; windows merged early; what the paper does, or attention merged too."""


def trained(toy: str, steps: int, pixels: int, prompts: int, recipes: Sequence[str] = ()) -> Task:
    """A trained toy, under several recipes.

    Args:
        toy: Which, as `load_toy` takes it.
        steps: Denoising steps.
        pixels: Height and width of the images.
        prompts: How many of `PROMPTS`.
        recipes: Names of shipped recipes, or files, for the blocks of the toy; those of `TOY_RECIPES` by default.
    """
    settings = {"height": pixels, "width": pixels, "num_inference_steps": steps, "output_type": "pt"}

    def draw(pipeline: Any, case: int) -> Tensor:
        image: Tensor = pipeline(PROMPTS[case], latents=_noise(pixels, case), **settings).images[0]
        return image.float()

    def watch(pipeline: Any, case: int) -> tuple[Tensor, tuple[Tensor, ...]]:
        latents = [_noise(pixels, case)]

        def keep(_: Any, step: int, timestep: Tensor, tensors: dict[str, Tensor]) -> dict[str, Tensor]:
            latents.append(tensors["latents"].clone())
            return {}

        images: Tensor = pipeline(
            PROMPTS[case], latents=latents[0], callback_on_step_end=keep, **settings
        ).images
        predictions = predicted_images(latents, pipeline.scheduler.sigmas)
        return images[0].float(), tuple((p[0] / 2 + 0.5).clamp(0, 1) for p in predictions)

    load = functools.partial(load_toy, toy)
    title = f"trained toy, {toy.upper()} blocks"
    fitted = tuple(map(_fit, recipes or TOY_RECIPES[toy]))
    return Task(title, f"toy-{toy}", load, draw, PROMPTS[:prompts], fitted, peak=1.0, watch=watch)


def predicted_images(latents: Sequence[Tensor], sigmas: Tensor) -> list[Tensor]:
    """What each step of an Euler sampler of a rectified flow took the image to be.

    The latent is ``(1 - sigma) * image + sigma * noise``; a step follows the velocity ``noise - image``, which two
    consecutive latents give back.

    Args:
        latents: The noise, and the latent after each step.
        sigmas: [steps + 1], one per latent.
    """
    predictions = []
    for step, (now, after) in enumerate(itertools.pairwise(latents)):
        velocity = (after - now) / (sigmas[step + 1] - sigmas[step])
        predictions.append(now - sigmas[step] * velocity)
    return predictions


def _noise(pixels: int, case: int) -> Tensor:
    return torch.randn(1, 3, pixels, pixels, generator=torch.Generator().manual_seed(case))


def random_sd3(steps: int) -> Task:
    """`StableDiffusion3Pipeline` around a random model of four blocks, with guidance."""
    from sdtm_fx.toy.random_pipelines import randomize, sd3_prompt_kwargs, tiny_sd3_pipeline

    def make() -> Any:
        pipeline = tiny_sd3_pipeline(layers=4, heads=4, head_dim=16, latent_size=_RANDOM_LATENT)
        randomize(pipeline.transformer, seed=3, scale=0.15)
        return pipeline

    def draw(pipeline: Any, case: int) -> Tensor:
        latents: Tensor = pipeline(num_inference_steps=steps, **sd3_prompt_kwargs(seed=case)).images[0]
        return latents.float()

    recipes = (_fit("sd3-medium-windows"),)
    title = "random weights, real StableDiffusion3Pipeline"
    return Task(title, "random-sd3", make, draw, _SEEDS, recipes, peak=None)


def random_flux(steps: int) -> Task:
    """`FluxPipeline` around a random model of two double and four single blocks."""
    from sdtm_fx.toy.random_pipelines import flux_prompt_kwargs, randomize, tiny_flux_pipeline

    def make() -> Any:
        pipeline = tiny_flux_pipeline(layers=2, single_layers=4, heads=4, latent_size=_RANDOM_LATENT)
        randomize(pipeline.transformer, seed=3, scale=0.15)
        return pipeline

    def draw(pipeline: Any, case: int) -> Tensor:
        packed: Tensor = pipeline(num_inference_steps=steps, **flux_prompt_kwargs(seed=case)).images[0]
        side = _RANDOM_LATENT // 2
        return packed.float().T.reshape(-1, side, side)

    recipes = (_fit("flux.1-dev-windows"), _fit("flux.1-dev-attention"))
    title = "random weights, real FluxPipeline"
    return Task(title, "random-flux", make, draw, _SEEDS, recipes, peak=None)


def _fit(name: str) -> Recipe:
    """A recipe for a model of any depth, at sizes where steps of 64 tokens would be too coarse."""
    return load_recipe(name).override({"sites.*.expect": None, "plan.round_to": 16})
