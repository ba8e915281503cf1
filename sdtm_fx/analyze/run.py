"""`analyze`: sample a pipeline and measure its blocks."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from sdtm_fx.analyze.layout import find_layout, pixels_per_token
from sdtm_fx.analyze.measure import Settings
from sdtm_fx.analyze.recorder import recording
from sdtm_fx.analyze.result import Analysis
from sdtm_fx.errors import SdtmFxError
from sdtm_fx.recipe.load import RecipeLike


@dataclass(frozen=True)
class Sampling:
    """How to sample.

    Attributes:
        steps: Denoising steps.
        height: Pixels; None takes the pipeline's default.
        width: Pixels; None takes the pipeline's default.
        guidance_scale: None takes the pipeline's default.
        seed: Of the noise of the first image; image i has `seed + i`.
        batch: Images in one call.
        output_type: What the pipeline returns: "latent" saves the decoding.
    """

    steps: int = 28
    height: int | None = None
    width: int | None = None
    guidance_scale: float | None = None
    seed: int = 0
    batch: int = 1
    output_type: str = "latent"

    def __post_init__(self) -> None:
        """Refuse counts and sizes below 1.

        Raises:
            SdtmFxError: The text names the value.
        """
        for name in ("steps", "batch", "height", "width"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise SdtmFxError(f"analyze: {name} is {value}; accepted: at least 1")


def analyze(
    pipeline: Any,
    prompts: Sequence[str],
    sampling: Sampling | None = None,
    *,
    recipe: RecipeLike | None = None,
    settings: Settings | None = None,
    on_step: Callable[[], None] = lambda: None,
    on_images: Callable[[Any], None] = lambda images: None,
) -> Analysis:
    """Sample a pipeline and measure the image tokens of its blocks at every step.

    The pipeline is left as it was, and its images are those that it draws without this. For pipelines that
    are called in another way, use `recorder.recording` around calls of your own.

    Args:
        pipeline: A text-to-image pipeline of diffusers, not rewritten.
        prompts: One for each image.
        sampling: How to sample.
        recipe: Names the token layout; by default the shipped recipe that fits the model.
        settings: What to measure.
        on_step: Called after each step of each call, for progress bars.
        on_images: Called with what each call returned as `images`.

    Raises:
        SdtmFxError: No recipe fits, there are no prompts, or the size is no whole number of tokens.
    """
    chosen = sampling or Sampling()
    if not prompts:
        raise SdtmFxError("analyze: there are no prompts; give one for each image")
    layout = find_layout(pipeline, recipe)
    size = {n: v for n, v in (("height", chosen.height), ("width", chosen.width)) if v is not None}
    _check_size(size, pixels_per_token(pipeline, layout.recipe))

    def check_grid(grid: tuple[int, int]) -> None:
        _check_grid(chosen, grid)

    with recording(
        pipeline, layout.recipe, settings=settings, on_step=on_step, check_grid=check_grid
    ) as recorder:
        for start in range(0, len(prompts), chosen.batch):
            texts = list(prompts[start : start + chosen.batch])
            seeds = range(chosen.seed + start, chosen.seed + start + len(texts))
            call: dict[str, Any] = {
                "prompt": texts,
                "num_inference_steps": chosen.steps,
                "generator": [torch.Generator().manual_seed(seed) for seed in seeds],
                "output_type": chosen.output_type,
                **size,
            }
            if chosen.guidance_scale is not None:
                call["guidance_scale"] = chosen.guidance_scale
            on_images(pipeline(**call).images)
    return recorder.result()


def _check_size(size: dict[str, int], token: tuple[int, int] | None) -> None:
    if token is None:
        return
    for (name, pixels), edge in zip(size.items(), _edges(size, token), strict=True):
        if pixels % edge:
            raise SdtmFxError(
                f"analyze: {name} {pixels} px is no whole number of tokens; accepted: multiples of {edge} px"
            )


def _edges(size: dict[str, int], token: tuple[int, int]) -> list[int]:
    return [token[0] if name == "height" else token[1] for name in size]


def _check_grid(sampling: Sampling, grid: tuple[int, int]) -> None:
    """Refuse a size that the pipeline rounded to its tokens (FLUX does, with no more than a warning)."""
    if sampling.height is None or sampling.width is None:
        return
    edge = max(sampling.height // grid[0], 1)
    if (sampling.height, sampling.width) != (grid[0] * edge, grid[1] * edge):
        raise SdtmFxError(
            f"analyze: {sampling.height} x {sampling.width} px is no whole number of tokens: the pipeline made "
            f"it {grid[0]} x {grid[1]} tokens; choose sides that the size of a token in pixels divides"
        )
