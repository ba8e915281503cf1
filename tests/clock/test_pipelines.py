"""The clock on real diffusers pipelines: exact step and count at every model call."""

from __future__ import annotations

import copy
import gc
from collections.abc import Callable
from typing import Any

import pytest
import torch
from diffusers import (
    DPMSolverMultistepScheduler,
    EulerDiscreteScheduler,
    FlowMatchEulerDiscreteScheduler,
    FlowMatchHeunDiscreteScheduler,
    StableDiffusion3Img2ImgPipeline,
)

from sdtm_fx.clock import Clock, Moment
from tests.pipelines import flux_prompt_kwargs, sd3_prompt_kwargs, tiny_flux_pipeline, tiny_sd3_pipeline


class Record:
    """Moments of every model call of a pipeline."""

    def __init__(self, pipe: Any, clock: Clock | None = None) -> None:
        self.clock = clock or Clock()
        self.moments: list[Moment] = []
        self.clock.follow(pipe)
        pipe.transformer.register_forward_pre_hook(self._hook)

    def _hook(self, module: torch.nn.Module, args: tuple[Any, ...]) -> None:
        self.moments.append(self.clock.moment())

    def take(self) -> list[Moment]:
        moments, self.moments = self.moments, []
        return moments


def steps(moments: list[Moment]) -> list[tuple[int, int]]:
    return [(moment.step, moment.count) for moment in moments]


def img2img(pipe: Any) -> StableDiffusion3Img2ImgPipeline:
    other = StableDiffusion3Img2ImgPipeline(**pipe.components)
    other.set_progress_bar_config(disable=True)
    return other


@pytest.mark.parametrize("count", [1, 4, 28])
@pytest.mark.parametrize("cfg", [False, True])
def test_sd3_counts_every_step(count: int, cfg: bool) -> None:
    pipe = tiny_sd3_pipeline()
    record = Record(pipe)
    pipe(num_inference_steps=count, **sd3_prompt_kwargs(2, cfg))
    moments = record.take()
    assert steps(moments) == [(t, count) for t in range(count)]
    assert [m.evaluation for m in moments] == list(range(count))
    assert len({m.generation for m in moments}) == 1


@pytest.mark.parametrize("count", [4, 28])
@pytest.mark.parametrize("guidance", [False, True])
def test_flux_counts_every_step(count: int, guidance: bool) -> None:
    pipe = tiny_flux_pipeline(guidance=guidance)
    record = Record(pipe)
    pipe(num_inference_steps=count, **flux_prompt_kwargs())
    assert steps(record.take()) == [(t, count) for t in range(count)]


@pytest.mark.parametrize("count", [4, 28])
def test_two_model_calls_of_one_step_are_the_same_step(count: int) -> None:
    pipe = tiny_flux_pipeline()
    record = Record(pipe)
    pipe(num_inference_steps=count, **flux_prompt_kwargs(true_cfg=True))
    moments = record.take()
    assert steps(moments) == [(t, count) for t in range(count) for _ in range(2)]
    assert [m.evaluation for m in moments] == [t for t in range(count) for _ in range(2)]


@pytest.mark.parametrize(("count", "strength", "expected"), [(4, 0.5, 2), (28, 0.5, 14), (10, 0.33, 4)])
def test_img2img_counts_the_steps_that_run(count: int, strength: float, expected: int) -> None:
    pipe = img2img(tiny_sd3_pipeline())
    record = Record(pipe)
    image = torch.zeros(1, 4, 8, 8)
    pipe(image=image, strength=strength, num_inference_steps=count, **sd3_prompt_kwargs())
    assert steps(record.take()) == [(t, expected) for t in range(expected)]


@pytest.mark.parametrize("count", [4, 28])
def test_heun_has_two_evaluations_per_step(count: int) -> None:
    pipe = tiny_sd3_pipeline(scheduler=FlowMatchHeunDiscreteScheduler())
    record = Record(pipe)
    pipe(num_inference_steps=count, **sd3_prompt_kwargs())
    moments = record.take()
    assert steps(moments) == [(k // 2, count) for k in range(2 * count - 1)]
    assert [m.evaluation for m in moments] == list(range(2 * count - 1))


def test_heun_img2img() -> None:
    pipe = img2img(tiny_sd3_pipeline(scheduler=FlowMatchHeunDiscreteScheduler()))
    record = Record(pipe)
    pipe(image=torch.zeros(1, 4, 8, 8), strength=0.5, num_inference_steps=8, **sd3_prompt_kwargs())
    moments = record.take()
    assert steps(moments) == [(k // 2, 4) for k in range(7)]


def test_generations_follow_each_other() -> None:
    pipe = tiny_sd3_pipeline()
    record = Record(pipe)
    pipe(num_inference_steps=4, **sd3_prompt_kwargs())
    first = record.take()
    pipe(num_inference_steps=6, **sd3_prompt_kwargs())
    second = record.take()
    assert steps(second) == [(t, 6) for t in range(6)]
    assert {m.generation for m in first} == {1}
    assert {m.generation for m in second} == {2}


def test_an_exception_in_the_middle_leaves_no_trace() -> None:
    pipe = tiny_sd3_pipeline()
    record = Record(pipe)

    def stop(pipe: Any, step: int, timestep: Any, values: dict[str, Any]) -> dict[str, Any]:
        if step == 2:
            raise KeyboardInterrupt
        return values

    with pytest.raises(KeyboardInterrupt):
        pipe(num_inference_steps=8, callback_on_step_end=stop, **sd3_prompt_kwargs())
    assert steps(record.take()) == [(t, 8) for t in range(3)]
    pipe(num_inference_steps=4, **sd3_prompt_kwargs())
    assert steps(record.take()) == [(t, 4) for t in range(4)]


@pytest.mark.parametrize(
    "make", [FlowMatchEulerDiscreteScheduler.from_config, FlowMatchHeunDiscreteScheduler.from_config]
)
def test_a_replaced_scheduler_is_followed(make: Callable[[Any], Any]) -> None:
    pipe = tiny_sd3_pipeline()
    record = Record(pipe)
    pipe(num_inference_steps=4, **sd3_prompt_kwargs())
    record.take()
    old = pipe.scheduler
    pipe.scheduler = make(old.config)
    pipe(num_inference_steps=6, **sd3_prompt_kwargs())
    moments = record.take()
    order = pipe.scheduler.order
    assert steps(moments) == [(k // order, 6) for k in range(len(pipe.scheduler.timesteps))]
    assert {m.generation for m in moments} == {2}
    assert not {"step", "set_timesteps", "__getstate__"} & set(vars(old))


def test_a_scheduler_replaced_before_img2img_knows_where_it_starts() -> None:
    pipe = img2img(tiny_sd3_pipeline())
    record = Record(pipe)
    pipe.scheduler = FlowMatchEulerDiscreteScheduler.from_config(pipe.scheduler.config)
    pipe(image=torch.zeros(1, 4, 8, 8), strength=0.5, num_inference_steps=8, **sd3_prompt_kwargs())
    assert steps(record.take()) == [(t, 4) for t in range(4)]


def test_following_may_start_in_the_middle_of_a_run() -> None:
    pipe = tiny_sd3_pipeline()
    seen: list[Moment] = []
    clock = Clock()

    def callback(pipe: Any, step: int, timestep: Any, values: dict[str, Any]) -> dict[str, Any]:
        if step == 2:
            clock.follow(pipe)
            pipe.transformer.register_forward_pre_hook(lambda module, args: seen.append(clock.moment()))
        return values

    pipe(num_inference_steps=6, callback_on_step_end=callback, **sd3_prompt_kwargs())
    assert steps(seen) == [(t, 6) for t in range(3, 6)]


def test_two_pipelines_share_one_scheduler() -> None:
    pipe = tiny_sd3_pipeline()
    other = img2img(pipe)
    first = Record(pipe)
    second = Record(other)
    other(image=torch.zeros(1, 4, 8, 8), strength=0.5, num_inference_steps=4, **sd3_prompt_kwargs())
    assert steps(first.take()) == steps(second.take()) == [(0, 2), (1, 2)]
    first.clock.unfollow()
    assert "step" in vars(pipe.scheduler)
    second.clock.unfollow()
    assert "step" not in vars(pipe.scheduler)


@pytest.mark.parametrize(
    "scheduler",
    [
        DPMSolverMultistepScheduler(use_flow_sigmas=True, prediction_type="flow_prediction"),
        EulerDiscreteScheduler(),
    ],
    ids=["dpm", "euler"],
)
def test_other_schedulers(scheduler: Any) -> None:
    pipe = tiny_sd3_pipeline(scheduler=scheduler)
    record = Record(pipe)
    pipe(num_inference_steps=6, **sd3_prompt_kwargs())
    assert steps(record.take()) == [(t, 6) for t in range(6)]


def test_a_deep_copied_pipeline_has_its_own_clock() -> None:
    pipe = tiny_sd3_pipeline()
    record = Record(pipe)
    pipe.transformer.sdtm_clock = record.clock
    twin = copy.deepcopy(pipe)
    clock = twin.transformer.sdtm_clock
    assert clock is not record.clock
    seen: list[Moment] = []
    twin.transformer.register_forward_pre_hook(lambda module, args: seen.append(clock.moment()))
    twin(num_inference_steps=5, **sd3_prompt_kwargs())
    assert steps(seen) == [(t, 5) for t in range(5)]
    pipe(num_inference_steps=4, **sd3_prompt_kwargs())
    assert steps(record.take()) == [(t, 4) for t in range(4)]


def test_a_copied_model_follows_nothing() -> None:
    pipe = tiny_sd3_pipeline()
    record = Record(pipe)
    assert copy.deepcopy(record.clock)._pipeline is None


def test_the_pipeline_is_not_kept_alive() -> None:
    pipe = tiny_sd3_pipeline()
    clock = Clock()
    clock.follow(pipe)
    scheduler, transformer = pipe.scheduler, pipe.transformer
    reference = clock._pipeline
    assert reference is not None
    del pipe
    gc.collect()
    assert reference() is None
    # The scheduler may live on in another pipeline, so it is still followed.
    scheduler.set_timesteps(3)
    assert (clock.moment().step, clock.moment().count) == (0, 3)
    assert transformer is not None


def test_compiled_signatures_and_results_do_not_change() -> None:
    pipe = tiny_sd3_pipeline()
    expected = pipe(num_inference_steps=3, **sd3_prompt_kwargs()).images
    Record(pipe)
    sigmas = [1.0, 0.6, 0.3]
    assert torch.equal(pipe(num_inference_steps=3, **sd3_prompt_kwargs()).images, expected)
    pipe(sigmas=sigmas, **sd3_prompt_kwargs())  # needs the signature of set_timesteps
