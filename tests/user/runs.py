"""Runs of rewritten pipelines, and what their model calls were."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch

from sdtm_fx.runtime.call import Call
from tests.pipelines import flux_prompt_kwargs, sd3_prompt_kwargs
from tests.user.cases import the_rewriting


def sd3_images(pipe: Any, steps: int = 6, batch: int = 1, cfg: bool = True, **options: Any) -> torch.Tensor:
    return pipe(num_inference_steps=steps, **sd3_prompt_kwargs(batch, cfg), **options).images


def flux_images(pipe: Any, steps: int = 6, true_cfg: bool = False, **options: Any) -> torch.Tensor:
    return pipe(num_inference_steps=steps, **flux_prompt_kwargs(true_cfg=true_cfg), **options).images


@contextmanager
def recorded_calls(pipe: Any) -> Iterator[list[Call]]:
    """The `Call` of every model call."""
    runtime, calls = the_rewriting(pipe.transformer).runtime, []

    def note(module: torch.nn.Module, args: Any) -> None:
        assert runtime.call is not None
        calls.append(runtime.call)

    handle = pipe.transformer.register_forward_pre_hook(note)
    try:
        yield calls
    finally:
        handle.remove()


def one_step(model: torch.nn.Module, inputs: dict[str, Any], clock: Any) -> torch.Tensor:
    output = model(**inputs)[0]
    clock.advance()
    return output
