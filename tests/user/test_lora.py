"""LoRA before and after a rewrite: exact where nothing is merged, in full effect where tokens are."""

from __future__ import annotations

import copy
import warnings
from collections.abc import Mapping
from typing import Any

import pytest
import torch
from peft import LoraConfig, get_peft_model_state_dict
from peft.tuners.lora import LoraLayer
from torch import nn

import sdtm_fx
from tests.pipelines import flux_prompt_kwargs, tiny_flux_pipeline
from tests.user.cases import (
    DENSE,
    FLUX_ATTENTION,
    FLUX_DEV,
    SD3,
    SD35_MEDIUM,
    Case,
    all_equal,
    distance,
    run_plain,
    run_steps,
)

TARGETS = {
    "sd3": ["to_q", "to_v", "to_out.0", "add_k_proj", "ff.net.0.proj", "ff.net.2", "norm1.linear"],
    "flux": [
        "to_q",
        "to_v",
        "add_k_proj",
        "ff.net.0.proj",
        "ff.net.2",
        "proj_mlp",
        "proj_out",
        "norm.linear",
    ],
}
# The levels of a curve depend on what the layers cost, and LoRA costs too; windows leave no near ties.
MERGED = {"ratio": {"curve": "constant", "start": 0.6}, "stages.detail.method": {"name": "ssm"}}
LORA_CASES = [
    pytest.param(SD35_MEDIUM, MERGED, id="sd3.5-medium"),
    pytest.param(FLUX_DEV, MERGED, id="flux.1-dev"),
    pytest.param(FLUX_ATTENTION, MERGED, id="flux.1-dev-attention"),
]


def add_lora(model: nn.Module, family: str, name: str = "style", seed: int = 5) -> nn.Module:
    """Add a LoRA with random weights to every kind of layer."""
    torch.manual_seed(seed)
    targets = [
        path
        for path, module in model.named_modules()
        if "blocks." in path
        and path.endswith(tuple(TARGETS[family]))
        and isinstance(module, nn.Linear | LoraLayer)
    ]
    assert any(path.endswith("to_q") for path in targets)
    model.add_adapter(LoraConfig(r=2, lora_alpha=2, target_modules=targets, init_lora_weights=False), name)
    return model.requires_grad_(False).eval()


def fused_by_hand(model: nn.Module, plain: nn.Module, scale: float = 1.0) -> nn.Module:
    """`plain` with the LoRA of `model` added to its weights."""
    fused = copy.deepcopy(plain)
    for path, layer in lora_layers(model).items():
        (name,) = layer.lora_A.keys()
        fused.get_submodule(path).weight.add_(layer.get_delta_weight(name) * scale)
    return fused


def lora_layers(model: nn.Module) -> dict[str, LoraLayer]:
    return {path: module for path, module in model.named_modules() if isinstance(module, LoraLayer)}


@pytest.mark.parametrize("when", ["before", "after"])
@pytest.mark.parametrize("case", [SD3, SD35_MEDIUM, FLUX_DEV], ids=lambda case: case.name)
def test_at_ratio_zero_lora_gives_what_the_unrewritten_model_gives(case: Case, when: str) -> None:
    inputs = case.inputs()
    reference = add_lora(case.model(), case.family)
    model = case.model()
    if when == "before":
        sdtm_fx.rewrite(add_lora(model, case.family), case.recipe(DENSE))
    else:
        add_lora(sdtm_fx.rewrite(model, case.recipe(DENSE)), case.family)
    assert all_equal(run_steps(model, inputs, 3), run_plain(reference, inputs, 3))
    scaled = {"joint_attention_kwargs": {"scale": 0.25}}
    expected = run_plain(reference, inputs, 3, **scaled)
    assert all_equal(run_steps(model, inputs, 3, **scaled), expected)
    assert not all_equal(expected, run_plain(reference, inputs, 3))


@pytest.mark.parametrize("when", ["before", "after"])
@pytest.mark.parametrize(("case", "changes"), LORA_CASES)
def test_merged_lora_equals_merged_fused_weights(case: Case, changes: dict[str, Any], when: str) -> None:
    plain, inputs = case.model(), case.inputs()
    model = copy.deepcopy(plain)
    if when == "before":
        sdtm_fx.rewrite(add_lora(model, case.family), case.recipe(changes))
    else:
        add_lora(sdtm_fx.rewrite(model, case.recipe(changes)), case.family)
    outputs = run_steps(model, inputs)
    scaled = run_steps(model, inputs, joint_attention_kwargs={"scale": 0.5})
    for scale, mine in ((1.0, outputs), (0.5, scaled)):
        fused = sdtm_fx.rewrite(fused_by_hand(model, plain, scale), case.recipe(changes))
        expected = run_steps(fused, inputs)
        assert distance(mine, expected) < 1e-4 * max(out.abs().max().item() for out in expected)
    assert distance(outputs, scaled) > 1e-3


def test_every_targeted_layer_of_flux_takes_part_in_merged_steps() -> None:
    model, inputs = FLUX_DEV.model(), FLUX_DEV.inputs()
    sdtm_fx.rewrite(model, FLUX_DEV.recipe({"reuse": None, "keep_dense.first_steps": 0}))
    add_lora(model, "flux")
    layers = lora_layers(model)
    assert {"single_transformer_blocks.0.proj_out", "single_transformer_blocks.1.proj_mlp"} <= set(layers)
    with sdtm_fx.steps(model, 28) as clock:
        clock.step = 12
        full = model(**inputs)[0]
        for path, layer in layers.items():
            weight = layer.lora_B["style"].weight
            saved = weight.clone()
            weight.zero_()
            assert not torch.equal(model(**inputs)[0], full), path
            weight.copy_(saved)
        assert torch.equal(model(**inputs)[0], full)


@pytest.mark.parametrize(("case", "changes"), LORA_CASES)
def test_adapters_that_come_and_go_between_generations(case: Case, changes: dict[str, Any]) -> None:
    model, inputs = case.model(), case.inputs()
    sdtm_fx.rewrite(model, case.recipe(changes))
    bare = run_steps(model, inputs)
    add_lora(model, case.family)
    fresh = add_lora(case.model(), case.family)
    with_lora = run_steps(sdtm_fx.rewrite(fresh, case.recipe(changes)), inputs)
    assert all_equal(run_steps(model, inputs), with_lora)
    model.disable_adapters()
    assert distance(run_steps(model, inputs), bare) < 1e-5
    model.enable_adapters()
    assert all_equal(run_steps(model, inputs), with_lora)
    model.fuse_lora()
    assert distance(run_steps(model, inputs), with_lora) < 1e-4
    model.unfuse_lora()
    model.unload_lora()
    assert distance(run_steps(model, inputs), bare) < 1e-5  # fusing and unfusing rounds the weights
    sdtm_fx.restore(model)
    assert not lora_layers(model)


def test_two_adapters_with_weights() -> None:
    reference, inputs = SD3.model(), SD3.inputs()
    model = sdtm_fx.rewrite(copy.deepcopy(reference), SD3.recipe(DENSE))
    for each in (reference, model):
        add_lora(each, "sd3", "one", seed=1)
        add_lora(each, "sd3", "two", seed=2)
        each.set_adapters(["one", "two"], [0.7, 0.3])
    assert all_equal(run_steps(model, inputs, 2), run_plain(reference, inputs, 2))


def test_an_adapter_in_the_middle_of_a_generation_is_not_passed_over() -> None:
    model, inputs = FLUX_DEV.model(), FLUX_DEV.inputs()
    sdtm_fx.rewrite(model, FLUX_DEV.recipe({"reuse": None}))
    with sdtm_fx.steps(model, 28) as clock:
        clock.step = 12
        model(**inputs)  # the projection is split in the program of this step
        add_lora(model, "flux")
        with_lora = model(**inputs)[0]
    fresh = sdtm_fx.rewrite(add_lora(FLUX_DEV.model(), "flux"), FLUX_DEV.recipe({"reuse": None}))
    with sdtm_fx.steps(fresh, 28) as clock:
        clock.step = 12
        expected = fresh(**inputs)[0]
    # The second call of a step has ages of its own; the plans are those of a first call.
    assert torch.allclose(with_lora, expected, atol=1e-5)


def test_a_pipeline_loads_lora_weights_before_and_after() -> None:
    state = lora_state_dict(tiny_flux_pipeline(single_layers=2).transformer)
    reference = tiny_flux_pipeline(single_layers=2)
    load(reference, state)
    expected = reference(num_inference_steps=4, **flux_prompt_kwargs()).images
    recipe = FLUX_DEV.recipe(DENSE)
    before = tiny_flux_pipeline(single_layers=2)
    load(before, state)
    sdtm_fx.rewrite(before, recipe)
    after = sdtm_fx.rewrite(tiny_flux_pipeline(single_layers=2), recipe)
    plain = after(num_inference_steps=4, **flux_prompt_kwargs()).images
    load(after, state)
    for pipe in (before, after):
        assert torch.equal(pipe(num_inference_steps=4, **flux_prompt_kwargs()).images, expected)
        pipe.unload_lora_weights()
        assert torch.equal(pipe(num_inference_steps=4, **flux_prompt_kwargs()).images, plain)
    assert not torch.equal(plain, expected)


def lora_state_dict(model: nn.Module) -> dict[str, torch.Tensor]:
    add_lora(model, "flux", "default")
    return {
        f"transformer.{name}": value * 3
        for name, value in get_peft_model_state_dict(model, adapter_name="default").items()
    }


def load(pipe: Any, state: Mapping[str, torch.Tensor]) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        pipe.load_lora_weights(dict(state), adapter_name="style")
