"""The models that users rewrite, small and random, with their recipes and inputs."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import nn

import sdtm_fx
from sdtm_fx.rewriting.rewriting import Rewriting, rewriting_of
from tests.pipelines import POOLED_DIM, TEXT_DIM, randomize, tiny_flux_transformer, tiny_sd3_transformer

SMALL = {"sites.*.expect": None, "plan.round_to": 1}
# What tests rely on is pinned: the shipped numbers follow measurements.
CURVE = {
    "ratio": {"curve": "cosine", "start": 0.7, "end": 0.3, "levels": 4},
    "keep_dense": {"first_steps": 1, "last_steps": 1, "every_steps": 3},
    "reuse": {"order": 1, "weight": 0.1},
    "stages.structure.until": 0.4,
    "stages.detail.method": {"name": "local_match", "window": [2, 2], "radius": 1},
}
SD3_SITES = {"stages.structure.sites": ["attn", "ff"], "stages.detail.sites": ["ff"], "plan.share": ["cfg"]}
SD35_SITES = {**SD3_SITES, "stages.structure.sites": ["attn", "attn2", "ff"]}
FLUX_SITES = {"stages.structure.sites": ["ff", "single_ff"], "stages.detail.sites": ["ff", "single_ff"]}
ALL_SITES = {**FLUX_SITES, "stages.structure.sites": ["attn", "ff", "single_attn", "single_ff"]}
DENSE = {"ratio": {"curve": "constant", "start": 0.0}}


@dataclass(frozen=True)
class Case:
    """One kind of model.

    Attributes:
        name: What it stands for.
        recipe_name: The shipped recipe for it.
        make: Makes the model.
        family: ``sd3`` or ``flux``: which arguments its forward takes.
        structures: How many different block graphs it has.
        pinned: What its recipe says here, whatever the shipped one says.
    """

    name: str
    recipe_name: str
    make: Callable[[], nn.Module] = field(repr=False)
    family: str
    structures: int
    pinned: Mapping[str, Any] = field(repr=False)

    def model(self, dtype: torch.dtype = torch.float32) -> nn.Module:
        """A fresh model with weights large enough for every layer to matter."""
        return randomize(self.make(), seed=3, scale=0.15).to(dtype)

    def recipe(self, changes: Mapping[str, Any] | None = None) -> sdtm_fx.Recipe:
        """The shipped recipe, for any depth and any size."""
        return sdtm_fx.load_recipe(self.recipe_name).override({**SMALL, **self.pinned, **(changes or {})})

    def inputs(
        self,
        batch: int = 2,
        grid: tuple[int, int] = (8, 8),
        text: int = 5,
        dtype: torch.dtype = torch.float32,
    ) -> dict[str, Any]:
        """Arguments of one call."""
        make = sd3_inputs if self.family == "sd3" else flux_inputs
        inputs = make(batch, grid, text, dtype)
        if self.recipe_name == "flux.1-schnell":
            del inputs["guidance"]
        return inputs


SD3 = Case(
    "sd3-medium",
    "sd3-medium-windows",
    lambda: tiny_sd3_transformer(layers=2),
    "sd3",
    2,
    {**CURVE, **SD3_SITES},
)
SD35_MEDIUM = Case(
    "sd3.5-medium",
    "sd3.5-medium-windows",
    lambda: tiny_sd3_transformer(layers=3, dual_attention_layers=(0,), qk_norm="rms_norm"),
    "sd3",
    3,
    {**CURVE, **SD35_SITES},
)
SD35_LARGE = Case(
    "sd3.5-large",
    "sd3.5-large-windows",
    lambda: tiny_sd3_transformer(layers=2, qk_norm="rms_norm"),
    "sd3",
    2,
    {**CURVE, **SD3_SITES},
)
FLUX_DEV = Case(
    "flux.1-dev",
    "flux.1-dev-windows",
    lambda: tiny_flux_transformer(layers=1, single_layers=2),
    "flux",
    2,
    {**CURVE, **FLUX_SITES},
)
FLUX_SCHNELL = Case(
    "flux.1-schnell",
    "flux.1-schnell",
    lambda: tiny_flux_transformer(layers=1, single_layers=2, guidance=False),
    "flux",
    2,
    {"keep_dense": {"first_steps": 1, "last_steps": 0, "every_steps": 2}, **FLUX_SITES},
)
FLUX_ATTENTION = Case(
    "flux.1-dev-attention",
    "flux.1-dev-attention",
    lambda: tiny_flux_transformer(layers=1, single_layers=2),
    "flux",
    2,
    {**CURVE, **ALL_SITES},
)
CASES = (SD3, SD35_MEDIUM, SD35_LARGE, FLUX_DEV, FLUX_SCHNELL, FLUX_ATTENTION)


def sd3_inputs(batch: int, grid: tuple[int, int], text: int, dtype: torch.dtype) -> dict[str, Any]:
    """One call of an SD3 transformer with 4 latent channels and patch 2."""
    noise = _noise(dtype)
    return {
        "hidden_states": noise(batch, 4, 2 * grid[0], 2 * grid[1]),
        "encoder_hidden_states": noise(batch, text, TEXT_DIM),
        "pooled_projections": noise(batch, POOLED_DIM),
        "timestep": torch.full((batch,), 500.0),
        "return_dict": False,
    }


def flux_inputs(batch: int, grid: tuple[int, int], text: int, dtype: torch.dtype) -> dict[str, Any]:
    """One call of a FLUX transformer with 4 latent channels."""
    noise = _noise(dtype)
    ids = torch.zeros(*grid, 3, dtype=dtype)
    ids[..., 1] += torch.arange(grid[0])[:, None]
    ids[..., 2] += torch.arange(grid[1])[None, :]
    return {
        "hidden_states": noise(batch, grid[0] * grid[1], 16),
        "encoder_hidden_states": noise(batch, text, TEXT_DIM),
        "pooled_projections": noise(batch, POOLED_DIM),
        "timestep": torch.full((batch,), 0.5, dtype=dtype),
        "img_ids": ids.reshape(-1, 3),
        "txt_ids": torch.zeros(text, 3, dtype=dtype),
        "guidance": torch.full((batch,), 3.5, dtype=dtype),
        "return_dict": False,
    }


def _noise(dtype: torch.dtype) -> Callable[..., torch.Tensor]:
    generator = torch.Generator().manual_seed(1)
    return lambda *shape: torch.randn(*shape, generator=generator).to(dtype)


def moving(inputs: Mapping[str, Any], step: int, count: int) -> dict[str, Any]:
    """Inputs of a later step of the same generation: the latent moves, and the timestep falls."""
    moved = dict(inputs)
    # The images move smoothly, as they do in sampling.
    moved["hidden_states"] = inputs["hidden_states"] * (1.0 - 0.5 * step / count) + 0.1 * step / count
    moved["timestep"] = inputs["timestep"] * (1.0 - step / count)
    return moved


@torch.no_grad()
def run_steps(
    model: nn.Module, inputs: Mapping[str, Any], count: int = 8, **options: Any
) -> list[torch.Tensor]:
    """The outputs of a rewritten model over a whole generation."""
    outputs = []
    with sdtm_fx.steps(model, count) as clock:
        for step in range(count):
            outputs.append(model(**moving(inputs, step, count), **options)[0])
            clock.advance()
    return outputs


@torch.no_grad()
def run_plain(
    model: nn.Module, inputs: Mapping[str, Any], count: int = 8, **options: Any
) -> list[torch.Tensor]:
    """The outputs of a model that is not rewritten, for the same inputs as `run_steps`."""
    return [model(**moving(inputs, step, count), **options)[0] for step in range(count)]


def all_equal(left: list[torch.Tensor], right: list[torch.Tensor]) -> bool:
    """Whether two runs are the same, bit for bit."""
    return len(left) == len(right) and all(torch.equal(a, b) for a, b in zip(left, right, strict=True))


def distance(left: list[torch.Tensor], right: list[torch.Tensor]) -> float:
    """The largest difference between two runs."""
    return max((a.float() - b.float()).abs().max().item() for a, b in zip(left, right, strict=True))


def the_rewriting(model: nn.Module) -> Rewriting:
    """The rewriting of a rewritten model."""
    rewriting = rewriting_of(model)
    assert rewriting is not None
    return rewriting


def module_state(model: nn.Module) -> dict[str, Any]:
    """Everything that a rewriting could leave behind: attributes, hooks and instance forwards, by module."""
    return {
        name: {key: dict(value) if "hooks" in key else id(value) for key, value in vars(module).items()}
        for name, module in model.named_modules()
    }


@contextmanager
def observed_inputs(model: nn.Module, match: str) -> Iterator[list[tuple[str, tuple[int, ...]]]]:
    """Record the shape of the tokens that go into every module whose path ends in `match`."""
    seen: list[tuple[str, tuple[int, ...]]] = []

    def note(path: str) -> Callable[..., None]:
        def hook(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
            tokens = args[0] if args else kwargs["hidden_states"]
            seen.append((path, tuple(tokens.shape)))

        return hook

    handles = [
        module.register_forward_pre_hook(note(path), with_kwargs=True)
        for path, module in model.named_modules()
        if path.endswith(match) and "context" not in path
    ]
    assert handles, match
    try:
        yield seen
    finally:
        for handle in handles:
            handle.remove()
