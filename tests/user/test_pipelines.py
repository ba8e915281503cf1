"""Rewritten pipelines: generations in a row, other sizes, exceptions, image to image."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from diffusers import StableDiffusion3Img2ImgPipeline

import sdtm_fx
from tests.pipelines import tiny_flux_pipeline, tiny_sd3_pipeline
from tests.user.cases import DENSE, FLUX_DEV, SD3, SD35_MEDIUM, run_steps, the_rewriting
from tests.user.runs import flux_images, recorded_calls, sd3_images


@pytest.fixture(scope="module")
def sd3() -> Any:
    return sdtm_fx.rewrite(tiny_sd3_pipeline(layers=3), SD3.recipe())


@pytest.fixture(scope="module")
def flux() -> Any:
    return sdtm_fx.rewrite(tiny_flux_pipeline(single_layers=2), FLUX_DEV.recipe())


def test_ratio_zero_is_the_original_pipeline() -> None:
    for make, recipe, images in (
        (tiny_sd3_pipeline, SD3.recipe(DENSE), sd3_images),
        (tiny_flux_pipeline, FLUX_DEV.recipe(DENSE), flux_images),
    ):
        assert torch.equal(images(sdtm_fx.rewrite(make(), recipe)), images(make()))


def test_generations_in_a_row_do_not_see_each_other(sd3: Any, flux: Any) -> None:
    for pipe, images in ((sd3, sd3_images), (flux, flux_images)):
        first = images(pipe)
        assert torch.equal(images(pipe), first)
        images(pipe, steps=9)
        images(pipe, steps=6, height=12, width=8)
        assert torch.equal(images(pipe), first)


def test_no_global_random_number_is_drawn(sd3: Any) -> None:
    before = torch.get_rng_state()
    sd3_images(sd3)
    run_steps(sdtm_fx.rewrite(SD35_MEDIUM.model(), SD35_MEDIUM.recipe()), SD35_MEDIUM.inputs(), 4)
    now = torch.get_rng_state()
    torch.set_rng_state(before)
    SD35_MEDIUM.model()  # building a model draws initial weights
    assert torch.equal(torch.get_rng_state(), now)


def test_merging_changes_the_image(sd3: Any, flux: Any) -> None:
    assert not torch.equal(sd3_images(sd3), sd3_images(tiny_sd3_pipeline(layers=3)))
    assert not torch.equal(flux_images(flux), flux_images(tiny_flux_pipeline(single_layers=2)))


@pytest.mark.parametrize("size", [(8, 8), (12, 8), (66, 94)], ids=["square", "3:2", "33x47"])
@pytest.mark.parametrize("batch", [1, 4])
def test_sizes_and_batches(sd3: Any, size: tuple[int, int], batch: int) -> None:
    with recorded_calls(sd3) as calls:
        images = sd3_images(sd3, steps=4, batch=batch, height=size[0], width=size[1])
    assert images.shape == (batch, 4, *size)
    assert {call.grid for call in calls} == {(size[0] // 2, size[1] // 2)}
    assert any(call.phase.remove > 0 for call in calls)


def test_an_exception_in_a_callback_leaves_no_trace(sd3: Any) -> None:
    expected = sd3_images(sd3)

    def stop(pipe: Any, step: int, timestep: Any, values: dict[str, Any]) -> dict[str, Any]:
        if step == 2:
            raise KeyboardInterrupt
        return values

    with pytest.raises(KeyboardInterrupt):
        sd3_images(sd3, callback_on_step_end=stop)
    assert torch.equal(sd3_images(sd3), expected)


def test_an_exception_inside_the_model_leaves_no_trace(sd3: Any) -> None:
    expected = sd3_images(sd3)

    def fail(module: torch.nn.Module, args: Any) -> None:
        raise RuntimeError("out of memory, say")

    handle = sd3.transformer.transformer_blocks[1].register_forward_pre_hook(fail)
    with pytest.raises(RuntimeError, match="out of memory"):
        sd3_images(sd3)
    handle.remove()
    assert the_rewriting(sd3.transformer).runtime.call is None
    assert torch.equal(sd3_images(sd3), expected)


def test_image_to_image(sd3: Any) -> None:
    pipe = StableDiffusion3Img2ImgPipeline(**sd3.components)
    pipe.set_progress_bar_config(disable=True)
    with recorded_calls(pipe) as calls:
        options = {"image": torch.zeros(1, 4, 8, 8), "strength": 0.5}
        first = sd3_images(pipe, steps=8, **options)
        assert len(calls) == 4
        assert [call.phase.stage for call in calls] == [
            the_rewriting(sd3.transformer).runtime.schedule(4, (4, 4), text=5).phase(step).stage
            for step in range(4)
        ]
    assert torch.equal(sd3_images(pipe, steps=8, **options), first)
