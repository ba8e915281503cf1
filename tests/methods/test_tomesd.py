"""Parity with the published ToMeSD package, on the U-Net of Stable Diffusion 1.5 at a small width."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import tomesd
import torch
from diffusers import UNet2DConditionModel
from torch import Tensor

import sdtm_fx
from sdtm_fx.errors import SiteError
from sdtm_fx.methods import TokenView, ToMe
from sdtm_fx.recipe import Recipe

BLOCKS = r"re:(down_blocks\.0|up_blocks\.1)\..*\."
"""The blocks at full resolution, which are those that ToMeSD merges by default."""

TOLERANCE = 1e-5


def unet() -> UNet2DConditionModel:
    torch.manual_seed(0)
    model = UNet2DConditionModel(
        sample_size=8, in_channels=4, out_channels=4, layers_per_block=1, block_out_channels=(32, 64),
        down_block_types=("CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
        up_block_types=("CrossAttnUpBlock2D", "CrossAttnUpBlock2D"),
        cross_attention_dim=24, attention_head_dim=2, norm_num_groups=8,
    )  # fmt: skip
    return model.eval()


def site(name: str, kind: str = "attention", **more: Any) -> dict[str, Any]:
    return {"id": name, "kind": kind, "match": BLOCKS + name, **more}


def recipe(sites: list[str], ratio: float, metric: str | None = "hidden_states") -> Recipe:
    every = [
        site("attn1", metric=metric),
        site("attn2", metric=metric),
        site("ff", "feed_forward", metric=metric),
    ]
    return Recipe.from_mapping(
        {
            "version": 1,
            "name": "tomesd-sd15",
            "model": ["UNet2DConditionModel"],
            "tokens": {"grid": {"latent": "sample", "patch": 1}},
            "inputs": {
                "sample": ["batch", "in_channels", "height", "width"],
                "timestep": ["batch"],
                "encoder_hidden_states": ["batch", "text", "cross_attention_dim"],
            },
            "sites": every,
            "stages": [
                {"name": "all", "until": 1.0, "sites": sites, "method": {"name": "tome", "random": False}}
            ],
            "ratio": {"curve": "constant", "start": ratio},
            "keep_dense": {"first_steps": 0, "last_steps": 0},
            "plan": {"round_to": 1},
        }
    )


def call(grid: tuple[int, int]) -> tuple[Tensor, Tensor, Tensor]:
    draw = torch.Generator().manual_seed(1)
    latent = torch.randn(2, 4, *grid, generator=draw)
    return latent, torch.full((2,), 500.0), torch.randn(2, 7, 24, generator=draw)


def outputs(
    sites: list[str], part: float, grid: tuple[int, int], **more: Any
) -> tuple[Tensor, Tensor, Tensor]:
    """What the dense model, ToMeSD's patched model and the rewritten model return."""
    model, arguments = unet(), call(grid)
    # ToMeSD rounds down what it removes, a schedule to what is nearest.
    ratio = (int(part * grid[0] * grid[1]) + 1e-6) / (grid[0] * grid[1])
    patched = copy.deepcopy(model)
    tomesd.apply_patch(
        patched, ratio=ratio, use_rand=False, merge_attn="attn1" in sites,
        merge_crossattn="attn2" in sites, merge_mlp="ff" in sites,
    )  # fmt: skip
    with torch.no_grad():
        dense, theirs = (m(*arguments).sample for m in (model, patched))
        sdtm_fx.rewrite(model, recipe(sites, ratio, **more))
        with sdtm_fx.steps(model, 1):
            ours = model(*arguments).sample
    return dense, theirs, ours


@pytest.mark.parametrize("grid", [(8, 12), (7, 10), (13, 6)], ids=str)
@pytest.mark.parametrize("sites", [["attn1"], ["attn1", "attn2", "ff"]], ids="+".join)
@pytest.mark.parametrize("part", [0.25, 0.6])
def test_a_whole_unet_agrees(sites: list[str], part: float, grid: tuple[int, int]) -> None:
    dense, theirs, ours = outputs(sites, part, grid)
    assert (theirs - dense).abs().max() > 1e-3, "merging does something"
    torch.testing.assert_close(ours, theirs, atol=TOLERANCE, rtol=0)


def test_the_input_of_the_site_is_another_metric() -> None:
    """ToMeSD compares what enters the block; without `metric` what the norm has made of it is compared."""
    _, theirs, ours = outputs(["attn1"], 0.5, (8, 12), metric=None)
    assert (ours - theirs).abs().max() > 1e-3


@pytest.mark.parametrize("grid", [(8, 12), (7, 9), (2, 2), (5, 16)], ids=str)
@pytest.mark.parametrize("ratio", [0.1, 0.5, 0.7])
def test_merge_and_unmerge_agree(grid: tuple[int, int], ratio: float) -> None:
    tokens = grid[0] * grid[1]
    metric, x = torch.randn(2, 2, tokens, 16, generator=torch.Generator().manual_seed(tokens))
    remove = min(int(tokens * ratio), ToMe().capacity(grid))
    merge, unmerge = tomesd.merge.bipartite_soft_matching_random2d(
        metric, grid[1], grid[0], 2, 2, remove, no_rand=True
    )
    plan = ToMe(random=False).plan(TokenView(metric, grid), remove)
    theirs, ours = merge(x), plan.merge(x)
    assert ours.shape == theirs.shape
    torch.testing.assert_close(plan.unmerge(ours), unmerge(theirs), atol=TOLERANCE, rtol=0)


def test_a_metric_that_the_block_does_not_have_is_an_error() -> None:
    with pytest.raises(
        SiteError,
        match=r"site 'attn1': BasicTransformerBlock is given no argument 'hiden_states' for `metric`; it is "
        r"given hidden_states, .*did you mean 'hidden_states'",
    ):
        sdtm_fx.rewrite(unet(), recipe(["attn1"], 0.5, metric="hiden_states"))
