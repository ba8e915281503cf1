"""Published models: one file each, with what its config says and how its pipeline calls it.

The numbers are those of the `config.json` that is published with the weights; what a file leaves out is the default of
the diffusers class.
"""

from __future__ import annotations

import importlib.resources
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import yaml
from torch import nn


@dataclass(frozen=True)
class ModelClass:
    """A model class of diffusers, imported when it is called.

    Attributes:
        name: Of the class.
    """

    name: str

    def __call__(self, **config: Any) -> nn.Module:
        """Build a model."""
        import diffusers

        built: nn.Module = getattr(diffusers, self.name)(**config)
        return built


@dataclass(frozen=True)
class BenchModel:
    """A model to measure or to count.

    Attributes:
        build: Its class.
        config: The published configuration.
        layers: Names of the numbers of blocks in `config`, in the order that the blocks run in; none where blocks run
            on several grids.
        pixels: Pixels of the image per token, in each direction.
        text: Text tokens in the published pipeline.
        halves: CFG halves stacked in one call.
        sizes: Sides of the square images, in pixels, that its costs are told at: what it is made for first.
        steps: Denoising steps that its costs are told at.
        source: Where it is published.
    """

    build: Callable[..., nn.Module]
    config: dict[str, Any]
    layers: tuple[str, ...]
    pixels: int
    text: int
    halves: int
    sizes: tuple[int, ...] = (1024, 2048)
    steps: int = 28
    source: str = ""

    @property
    def width(self) -> int:
        """Channels of a token."""
        return int(self.config["num_attention_heads"] * self.config["attention_head_dim"])


def read_models() -> dict[str, BenchModel]:
    """Read the files of this folder, by name."""
    folder = importlib.resources.files(__name__)
    files = sorted((f for f in folder.iterdir() if f.name.endswith(".yaml")), key=lambda file: file.name)
    return {file.name.removesuffix(".yaml"): _read(file.read_text(encoding="utf-8")) for file in files}


def _read(text: str) -> BenchModel:
    data = yaml.safe_load(text)
    data["build"] = ModelClass(data.pop("model"))
    return BenchModel(**{key: tuple(v) if isinstance(v, list) else v for key, v in data.items()})
