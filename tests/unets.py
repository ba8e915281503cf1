"""A small random U-Net of the class and layout of Stable Diffusion XL: attention on two grids, none on the finest."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from diffusers import UNet2DConditionModel
from torch import Tensor, nn

import sdtm_fx
from tests.pipelines import randomize

TEXT_DIM = 24
SMALL = {"sites.*.expect": None, "plan.round_to": 1}
MERGED = {"reuse": None, "keep_dense": {"first_steps": 0, "last_steps": 0, "every_steps": None}}
"""Every step merges, and merged positions get copies."""


def tiny_sdxl(layers: int = 1, per_level: int = 1) -> nn.Module:
    """Build one.

    Args:
        layers: Blocks in each transformer; the released model has 2 on the finer grid and 10 on the coarser.
        per_level: Transformers on the way down of each grid; there is one more on the way up. Released: 2.
    """
    cross = ("CrossAttnDownBlock2D", "CrossAttnDownBlock2D")
    model = UNet2DConditionModel(
        sample_size=16, in_channels=4, out_channels=4, layers_per_block=per_level,
        down_block_types=("DownBlock2D", *cross),
        up_block_types=("CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"),
        block_out_channels=(8, 16, 32), transformer_layers_per_block=(1, layers, layers),
        attention_head_dim=(1, 2, 4), cross_attention_dim=TEXT_DIM, norm_num_groups=4, use_linear_projection=True,
        addition_embed_type="text_time", addition_time_embed_dim=8,
        projection_class_embeddings_input_dim=1280 + 6 * 8,
    )  # fmt: skip
    return randomize(model, seed=3, scale=0.15)


def sdxl_inputs(latent: tuple[int, int] = (32, 24), batch: int = 2, text: int = 5) -> dict[str, Any]:
    """Arguments of one call; 32 x 24 are 16 x 12 and 8 x 6 tokens."""
    draw = torch.Generator().manual_seed(1)

    def noise(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=draw)

    return {
        "sample": noise(batch, 4, *latent),
        "timestep": torch.full((batch,), 500.0),
        "encoder_hidden_states": noise(batch, text, TEXT_DIM),
        "added_cond_kwargs": {"text_embeds": noise(batch, 1280), "time_ids": noise(batch, 6)},
        "return_dict": False,
    }


def run_steps(model: nn.Module, inputs: Mapping[str, Any], count: int, **options: Any) -> list[Tensor]:
    """The outputs of a rewritten model over a whole generation; the latent moves a little."""
    outputs = []
    with torch.no_grad(), sdtm_fx.steps(model, count, **options) as clock:
        for step in range(count):
            outputs.append(model(**moved(inputs, step))[0])
            clock.advance()
    return outputs


def moved(inputs: Mapping[str, Any], step: int) -> dict[str, Any]:
    """The inputs of a later step."""
    return {**inputs, "sample": inputs["sample"] * (1 - 0.05 * step)}


@contextmanager
def lengths(model: nn.Module, match: str) -> Iterator[dict[str, int]]:
    """The tokens that every module whose path ends in `match` was given last, by path."""
    seen: dict[str, int] = {}

    def note(path: str) -> Any:
        def hook(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
            value = args[0] if args else kwargs["hidden_states"]
            seen[path] = value.shape[1]

        return hook

    handles = [
        module.register_forward_pre_hook(note(path), with_kwargs=True)
        for path, module in model.named_modules()
        if path.endswith(match)
    ]
    assert handles, match
    try:
        yield seen
    finally:
        for handle in handles:
            handle.remove()
