"""The released configs, with weights on meta: few structures, in seconds."""

from __future__ import annotations

import gc
import time
import tracemalloc
from collections.abc import Callable

import pytest
import torch
from diffusers import FluxTransformer2DModel, SD3Transformer2DModel
from torch import nn

import sdtm_fx
from tests.user.cases import the_rewriting


def sd3_medium() -> nn.Module:
    return SD3Transformer2DModel(
        sample_size=128,
        num_layers=24,
        attention_head_dim=64,
        num_attention_heads=24,
        joint_attention_dim=4096,
        caption_projection_dim=1536,
        pooled_projection_dim=2048,
        pos_embed_max_size=192,
    )


def flux_dev() -> nn.Module:
    return FluxTransformer2DModel(guidance_embeds=True)  # the defaults are FLUX.1's


@pytest.mark.parametrize(
    ("make", "recipe", "structures", "blocks"),
    [
        (sd3_medium, "sd3-medium", 3, 24),  # the ends of the span are others
        (sd3_medium, "sd3-medium-windows", 2, 24),
        (flux_dev, "flux.1-dev", 4, 57),
        (flux_dev, "flux.1-dev-windows", 2, 57),
    ],
)
def test_a_released_config_is_rewritten_in_seconds(
    make: Callable[[], nn.Module], recipe: str, structures: int, blocks: int
) -> None:
    with torch.device("meta"):
        model = make().to(torch.bfloat16)
    started = time.process_time()
    sdtm_fx.rewrite(model, recipe)
    # 5 where nothing else runs: a machine that shares its caches takes twice as long.
    assert time.process_time() - started < 15
    rewriting = the_rewriting(model)
    assert len(rewriting.cache.programs) == structures
    assert len(rewriting.bindings) == blocks
    assert sum(sum(branch.bytes().values()) for branch in rewriting.runtime.state.branches.values()) == 0


def test_a_rewrite_adds_under_one_percent_to_memory() -> None:
    with torch.device("meta"):
        model = sd3_medium().to(torch.bfloat16)
    weights = sum(p.numel() * p.element_size() for p in model.parameters())
    tracemalloc.start()
    try:
        sdtm_fx.rewrite(model, "sd3-medium-windows")
        gc.collect()
        added, _ = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert added < 0.01 * weights
