"""The models that benchmarks build with random weights."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import torch

from sdtm_fx.bench.models import BenchModel as BenchModel
from sdtm_fx.bench.models import read_models
from sdtm_fx.errors import RewriteError, nearest

PUBLISHED: dict[str, BenchModel] = read_models()
"""Published models by name."""

MODELS: dict[str, BenchModel] = {name: model for name, model in PUBLISHED.items() if model.layers}
"""Those that benchmarks build: of equal blocks, all on one grid."""


def bench_model(name: str) -> BenchModel:
    """Return a model by name.

    Raises:
        RewriteError: There is none of that name.
    """
    if name not in MODELS:
        raise RewriteError(
            f"no benchmark model {name!r}; there are {', '.join(MODELS)}{nearest(name, MODELS)}"
        )
    return MODELS[name]


def resized(model: BenchModel, pixels: int | None, text: int | None, halves: int | None) -> BenchModel:
    """A model at other sizes of a call; None leaves what is there.

    Args:
        model: What to build.
        pixels: Pixels of the image per token, in each direction.
        text: Text tokens.
        halves: Guidance halves stacked in one call.
    """
    return replace(
        model,
        pixels=model.pixels if pixels is None else pixels,
        text=model.text if text is None else text,
        halves=model.halves if halves is None else halves,
    )


def config_of(model: BenchModel, layers: Sequence[int] | None) -> dict[str, Any]:
    """The published configuration, with other numbers of blocks.

    Args:
        model: What to build.
        layers: How many blocks of each kind, in the order of `BenchModel.layers`; None for all.
    """
    return {**model.config, **dict(zip(model.layers, layers or (), strict=layers is not None))}


def build(
    model: BenchModel, layers: Sequence[int] | None, dtype: torch.dtype, device: torch.device
) -> torch.nn.Module:
    """Build a model with seeded random weights, of small scale so that values stay finite in half precision.

    Args:
        model: What to build.
        layers: How many blocks of each kind, in the order of `BenchModel.layers`; None for all.
        dtype: Of the weights.
        device: Of the weights.
    """
    with torch.device("meta"):
        built = model.build(**config_of(model, layers))
    built = built.to_empty(device=device).to(dtype).eval().requires_grad_(False)
    generator = torch.Generator(device=device).manual_seed(0)
    for tensor in [*built.parameters(), *built.buffers()]:
        if tensor.is_floating_point():
            tensor.data.normal_(0.0, 0.02, generator=generator)
    return built
