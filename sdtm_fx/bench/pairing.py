"""A dense model and a merged one on the same weights, to be timed side by side."""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch

from sdtm_fx.bench.configs import BenchModel, build
from sdtm_fx.bench.memory import peak_bytes
from sdtm_fx.bench.timing import seconds
from sdtm_fx.capture.example import ExampleSize, example_call
from sdtm_fx.compiling.compile import CUDA_GRAPHS, compile
from sdtm_fx.grids import TokenGrid
from sdtm_fx.recipe.schema import Recipe
from sdtm_fx.rewrite import rewrite
from sdtm_fx.rewriting.rewriting import Rewriting, rewriting_of


@dataclass(frozen=True)
class BenchSetup:
    """What to measure.

    Attributes:
        ratio: Fraction of the image tokens removed.
        layers: Blocks of each kind, in the order of `BenchModel.layers`; None for the whole model.
        grid: (height, width) in image tokens.
        batch: Images; CFG halves come on top.
        dtype: Of weights and activations.
        device: Where to run.
        runs: Pairs of runs per stage.
        compiled: Compile both: the dense model whole, the merged one phase by phase.
        mode: Of torch.compile, for both.
    """

    ratio: float
    layers: tuple[int, ...] | None
    grid: TokenGrid
    batch: int
    dtype: torch.dtype
    device: torch.device
    runs: int
    compiled: bool = False
    mode: str | None = None

    @property
    def records_graphs(self) -> bool:
        """Whether calls are replayed as CUDA graphs, whose memory lies in pools that no call allocates from."""
        return self.compiled and self.mode in CUDA_GRAPHS


@dataclass(frozen=True)
class Pairing:
    """A dense and a merged model on the same weights, ready to be timed.

    Attributes:
        dense: The dense model, compiled where the setup says so.
        merged: The merged one, alike.
        arguments: Arguments of a call.
        size: Their size.
        device: Where both run.
    """

    dense: Callable[..., Any]
    merged: torch.nn.Module
    arguments: Mapping[str, Any]
    size: ExampleSize
    device: torch.device

    @property
    def rewriting(self) -> Rewriting:
        """The rewriting of the merged model."""
        found = rewriting_of(self.merged)
        assert found is not None
        return found

    def run_dense(self) -> object:
        """Call the dense model."""
        return self.dense(**self.arguments)

    def run_merged(self) -> object:
        """Call the merged model, in the phase that its clock says."""
        return self.merged(**self.arguments)

    def time_pair(self) -> tuple[float, float]:
        """Seconds of a dense call and of a merged one right after it."""
        return seconds(self.run_dense, self.device), seconds(self.run_merged, self.device)

    def peak(self, run: Callable[[], object], setup: BenchSetup) -> int | None:
        """The most memory in use during a call, where it can be counted; see `peak_bytes`."""
        return None if setup.records_graphs else peak_bytes(run, self.device)


def pair_of_models(model: BenchModel, recipe: Recipe, setup: BenchSetup) -> Pairing:
    """Build a model, and rewrite a copy that shares its weights."""
    merged = build(model, setup.layers, setup.dtype, setup.device)
    dense: Any = copy.deepcopy(merged, {id(t): t for t in [*merged.parameters(), *merged.buffers()]})
    rewrite(merged, recipe)
    size = ExampleSize(setup.batch * model.halves, model.text, setup.grid)
    arguments = _noise(example_call(merged, recipe, size))
    if setup.compiled:
        torch.compiler.reset()
        compile(merged, mode=setup.mode, dynamic=False)
        dense = torch.compile(dense, mode=setup.mode, dynamic=False, fullgraph=True)
    return Pairing(dense, merged, arguments, size, setup.device)


def _noise(arguments: Mapping[str, Any]) -> dict[str, Any]:
    """Put seeded noise into the latent and the embeddings; ids and times stay."""
    generator = torch.Generator().manual_seed(0)

    def fill(value: Any) -> Any:
        if isinstance(value, torch.Tensor) and value.ndim >= 3:
            noise = torch.randn(value.shape, generator=generator, dtype=torch.float32)
            return noise.to(value.dtype).to(value.device)
        return value

    return {name: fill(value) for name, value in arguments.items()}
