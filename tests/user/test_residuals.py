"""ControlNet residuals, skipped layers, the prompt weight, and the step without a pipeline."""

from __future__ import annotations

import warnings
from typing import Any

import pytest
import torch

import sdtm_fx
from tests.user.cases import DENSE, FLUX_DEV, FLUX_SCHNELL, SD3, SD35_MEDIUM, run_steps
from tests.user.runs import one_step


def test_a_bare_model_warns_once_that_it_reads_the_timestep() -> None:
    model, inputs = FLUX_SCHNELL.model(), FLUX_SCHNELL.inputs()
    sdtm_fx.rewrite(model, FLUX_SCHNELL.recipe())
    with pytest.warns(UserWarning, match="estimated from the timestep") as caught:
        for time in (1.0, 0.9, 0.5, 0.1):
            model(**{**inputs, "timestep": torch.full((2,), time)})
    assert len([w for w in caught if "estimated" in str(w.message)]) == 1
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        run_steps(model, inputs, 2)


def test_controlnet_residuals_and_skipped_layers_of_sd3() -> None:
    model, inputs = SD35_MEDIUM.model(), SD35_MEDIUM.inputs()
    extra = {"block_controlnet_hidden_states": [torch.full((2, 64, 16), 0.1)] * 3, "skip_layers": [1]}
    plain = model(**inputs, **extra)[0]
    assert not torch.equal(plain, model(**inputs)[0])
    sdtm_fx.rewrite(model, SD35_MEDIUM.recipe(DENSE))
    assert all(torch.equal(out, plain) for out in constant_run(model, {**inputs, **extra}))
    sdtm_fx.rewrite(model, SD35_MEDIUM.recipe())
    merged = constant_run(model, {**inputs, **extra})
    assert torch.equal(merged[-1], plain)  # the last step is dense
    assert not torch.equal(merged[1], plain)
    # A layer may be left out on the very steps that store its features.
    with sdtm_fx.steps(model, 6) as clock:
        for step in range(6):
            output = model(**inputs, skip_layers=[1] if step in (0, 3) else None)[0]
            assert bool(output.isfinite().all())
            clock.advance()


def test_controlnet_residuals_of_flux() -> None:
    model, inputs = FLUX_DEV.model(), FLUX_DEV.inputs()
    residual = [torch.full((2, 64, 32), 0.1)]
    extra = {"controlnet_block_samples": residual, "controlnet_single_block_samples": residual * 2}
    plain = model(**inputs, **extra)[0]
    assert not torch.equal(plain, model(**inputs)[0])
    sdtm_fx.rewrite(model, FLUX_DEV.recipe(DENSE))
    assert all(torch.equal(out, plain) for out in constant_run(model, {**inputs, **extra}))
    sdtm_fx.rewrite(model, FLUX_DEV.recipe())
    merged = constant_run(model, {**inputs, **extra})
    assert torch.equal(merged[-1], plain)
    assert not torch.equal(merged[1], plain)


def constant_run(model: torch.nn.Module, inputs: dict[str, Any]) -> list[torch.Tensor]:
    with sdtm_fx.steps(model, 6) as clock:
        return [one_step(model, inputs, clock) for _ in range(6)]


def test_the_prompt_weight_acts_on_every_step() -> None:
    model, inputs = SD3.model(), SD3.inputs()
    plain = model(**inputs)[0]
    sdtm_fx.rewrite(model, SD3.recipe({"prompt": {"start": 2.0, "end": 1.5}}))
    assert not any(torch.equal(output, plain) for output in constant_run(model, inputs))
