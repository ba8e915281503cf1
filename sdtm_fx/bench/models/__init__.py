"""Published models: one file each, with what its config says and how its pipeline calls it.

The numbers are those of the `config.json` that is published with the weights; what a file leaves out is the default of
the diffusers class.
"""

from __future__ import annotations

import importlib.resources
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import yaml
from torch import nn

from sdtm_fx.errors import InspectionError


@dataclass(frozen=True)
class ModelClass:
    """A model class of diffusers, imported when it is called.

    Attributes:
        name: Of the class.
    """

    name: str

    def __call__(self, **config: Any) -> nn.Module:
        """Build a model.

        Raises:
            InspectionError: The installed diffusers has no such class.
        """
        import diffusers

        if not hasattr(diffusers, self.name):
            found = f"found no {self.name} in diffusers {diffusers.__version__}"
            raise InspectionError(f"{found}; accepted: a version of diffusers that has it")
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
        grids: Grids in tokens that its costs are told at instead, by what they are called: those of videos.
        references: Reference images of the image's size that a call has.
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
    references: int = 0
    grids: Mapping[str, tuple[int, ...]] = field(default_factory=dict)
    source: str = ""

    @property
    def sized_grids(self) -> dict[str, tuple[int, ...]]:
        """Grids in tokens that its costs are told at, by pixels of a side or what they are called."""
        if self.grids:
            return {name: tuple(grid) for name, grid in self.grids.items()}
        return {str(side): (side // self.pixels, side // self.pixels) for side in self.sizes}

    @property
    def width(self) -> int:
        """Channels of a token."""
        if "dim" in self.config:
            return int(self.config["dim"])
        return int(self.config["num_attention_heads"] * self.config["attention_head_dim"])


def read_models() -> dict[str, BenchModel]:
    """Read the files of this folder, by name."""
    folder = importlib.resources.files(__name__)
    files = {f.name.removesuffix(".yaml"): f for f in folder.iterdir() if f.name.endswith(".yaml")}
    return {name: _read(files[name].read_text(encoding="utf-8")) for name in sorted(files)}


def _read(text: str) -> BenchModel:
    data: dict[str, Any] = yaml.safe_load(text)
    data["build"] = ModelClass(data.pop("model"))
    fields: dict[str, Any] = {key: tuple(v) if isinstance(v, list) else v for key, v in data.items()}
    return BenchModel(**fields)
