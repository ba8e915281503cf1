"""Hooks of accelerate, diffusers and users, set before and after a rewrite."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from accelerate import cpu_offload
from accelerate.hooks import AlignDevicesHook, ModelHook, add_hook_to_module, remove_hook_from_module
from diffusers import FirstBlockCacheConfig
from torch import nn

import sdtm_fx
from tests.pipelines import flux_prompt_kwargs, tiny_flux_pipeline
from tests.user.cases import (
    DENSE,
    FLUX_DEV,
    SD3,
    Case,
    all_equal,
    distance,
    module_state,
    run_plain,
    run_steps,
)

BOTH = pytest.mark.parametrize("case", [SD3, FLUX_DEV], ids=lambda case: case.name)
WHEN = pytest.mark.parametrize("when", ["before", "after"])


class Count(ModelHook):
    """Counts calls, as an offload hook would move weights."""

    def __init__(self) -> None:
        self.calls = 0

    def pre_forward(self, module: nn.Module, *args: Any, **kwargs: Any) -> tuple[Any, Any]:
        self.calls += 1
        return args, kwargs


@WHEN
@BOTH
def test_accelerate_hooks_on_blocks_keep_running(case: Case, when: str) -> None:
    model, inputs, hook = case.model(), case.inputs(), Count()
    expected = run_steps(sdtm_fx.rewrite(case.model(), case.recipe()), inputs)
    plain = run_plain(model, inputs)
    block = next(m for name, m in model.named_modules() if name.endswith("transformer_blocks.0"))
    if when == "before":
        add_hook_to_module(block, hook)
        sdtm_fx.rewrite(model, case.recipe())
    else:
        sdtm_fx.rewrite(model, case.recipe())
        add_hook_to_module(block, hook)
    assert all_equal(run_steps(model, inputs), expected)
    assert hook.calls == len(expected)
    sdtm_fx.restore(model)
    assert all_equal(run_plain(model, inputs), plain)
    assert hook.calls == 2 * len(expected)
    remove_hook_from_module(block)
    assert all_equal(run_plain(model, inputs), plain)


@WHEN
def test_a_hook_that_goes_while_rewritten(when: str) -> None:
    model, inputs = SD3.model(), SD3.inputs()
    plain = run_plain(model, inputs)
    block = model.transformer_blocks[0]
    if when == "before":
        add_hook_to_module(block, Count())
    sdtm_fx.rewrite(model, SD3.recipe())
    merged = run_steps(model, inputs)
    if when == "after":
        add_hook_to_module(block, Count())
    remove_hook_from_module(block)
    assert all_equal(run_steps(model, inputs), merged)
    sdtm_fx.restore(model)
    assert all_equal(run_plain(model, inputs), plain)


@WHEN
@BOTH
def test_model_offload(case: Case, when: str) -> None:
    model, inputs = case.model(), case.inputs()
    expected = run_steps(sdtm_fx.rewrite(case.model(), case.recipe()), inputs)
    if when == "before":
        add_hook_to_module(model, AlignDevicesHook("cpu", io_same_device=True, place_submodules=True))
    sdtm_fx.rewrite(model, case.recipe())
    if when == "after":
        add_hook_to_module(model, AlignDevicesHook("cpu", io_same_device=True, place_submodules=True))
    assert all_equal(run_steps(model, inputs), expected)


@WHEN
@BOTH
def test_sequential_offload(case: Case, when: str) -> None:
    model, inputs = case.model(), case.inputs()
    # Weights on meta cannot be cut, so the projection of FLUX stays whole here and there.
    recipe = case.recipe({"passes.split_projection": False})
    expected = run_steps(sdtm_fx.rewrite(case.model(), recipe), inputs)
    if when == "before":
        cpu_offload(model, torch.device("cpu"))
    sdtm_fx.rewrite(model, recipe)
    if when == "after":
        cpu_offload(model, torch.device("cpu"))
    assert all_equal(run_steps(model, inputs), expected)


@WHEN
def test_sequential_offload_leaves_the_flux_projection_whole(when: str) -> None:
    model, inputs = FLUX_DEV.model(), FLUX_DEV.inputs()
    expected = run_steps(sdtm_fx.rewrite(case := FLUX_DEV.model(), FLUX_DEV.recipe()), inputs)
    assert case is not model
    if when == "before":
        cpu_offload(model, torch.device("cpu"))
    sdtm_fx.rewrite(model, FLUX_DEV.recipe())
    if when == "after":
        cpu_offload(model, torch.device("cpu"))
    outputs = run_steps(model, inputs)
    assert all(a.shape == b.shape for a, b in zip(outputs, expected, strict=True))
    assert distance(outputs[:1], expected[:1]) < 1e-4


@WHEN
@BOTH
def test_layerwise_casting(case: Case, when: str) -> None:
    def cast(model: nn.Module) -> None:
        model.enable_layerwise_casting(storage_dtype=torch.bfloat16, compute_dtype=torch.float32)

    model, reference, inputs = case.model(), case.model(), case.inputs()
    cast(reference)
    plain = run_plain(reference, inputs)
    if when == "before":
        cast(model)
    sdtm_fx.rewrite(model, case.recipe())
    if when == "after":
        cast(model)
    outputs = run_steps(model, inputs)
    assert torch.equal(outputs[-1], plain[-1])  # the last step is dense
    assert not all_equal(outputs, plain)
    sdtm_fx.restore(model)
    assert all_equal(run_plain(model, inputs), plain)


@WHEN
def test_first_block_cache_on_flux(when: str) -> None:
    config = FirstBlockCacheConfig(threshold=0.3)
    pipe, reference = tiny_flux_pipeline(layers=2), tiny_flux_pipeline(layers=2)
    reference.transformer.enable_cache(config)
    plain = reference(num_inference_steps=8, **flux_prompt_kwargs()).images
    if when == "before":
        pipe.transformer.enable_cache(config)
        sdtm_fx.rewrite(pipe, FLUX_DEV.recipe())
    else:
        sdtm_fx.rewrite(pipe, FLUX_DEV.recipe())
        pipe.transformer.enable_cache(config)
    first = pipe(num_inference_steps=8, **flux_prompt_kwargs()).images
    assert torch.equal(pipe(num_inference_steps=8, **flux_prompt_kwargs()).images, first)
    sdtm_fx.restore(pipe)
    assert torch.equal(pipe(num_inference_steps=8, **flux_prompt_kwargs()).images, plain)
    pipe.transformer.disable_cache()
    plain = tiny_flux_pipeline(layers=2)(num_inference_steps=8, **flux_prompt_kwargs()).images
    assert torch.equal(pipe(num_inference_steps=8, **flux_prompt_kwargs()).images, plain)


def test_hooks_of_the_user_see_no_tracing() -> None:
    model, seen = SD3.model(), []
    for module in model.modules():
        module.register_forward_hook(lambda module, args, output: seen.append(type(output)))
    sdtm_fx.rewrite(model, SD3.recipe())
    assert not seen
    model.to(torch.bfloat16)  # traced again at the next call
    run_steps(model, SD3.inputs(dtype=torch.bfloat16), 4)
    assert seen
    assert {kind for kind in seen if issubclass(kind, torch.Tensor)} == {torch.Tensor}


def test_dense_is_the_same_with_every_hook_at_once() -> None:
    model, inputs = SD3.model(), SD3.inputs()
    plain = run_plain(model, inputs)
    untouched = module_state(model)
    cpu_offload(model, torch.device("cpu"))
    sdtm_fx.rewrite(model, SD3.recipe(DENSE))
    assert all_equal(run_steps(model, inputs), plain)
    sdtm_fx.restore(model)
    remove_hook_from_module(model, recurse=True)
    assert module_state(model).keys() == untouched.keys()
