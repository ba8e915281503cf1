"""What `rewrite` takes, against the number of blocks: equal ones are traced and rewritten once."""

from __future__ import annotations

import gc
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial

import torch

from sdtm_fx.bench.configs import BenchModel, config_of
from sdtm_fx.capture.blocks import capture_block, capture_outer
from sdtm_fx.capture.example import example_call, example_size
from sdtm_fx.recipe.schema import Recipe
from sdtm_fx.rewrite import rewrite
from sdtm_fx.rewriting.programs import ProgramCache
from sdtm_fx.rewriting.rewriting import Rewriting, rewriting_of


@dataclass(frozen=True)
class DepthTiming:
    """`rewrite` at one depth.

    Attributes:
        blocks: Blocks that are rewritten.
        structures: Different structures among them.
        total_seconds: A call of `rewrite`.
        tracing_seconds: Of that, tracing the model and the blocks that differ.
        rewriting_seconds: Of that, running the passes, once for each structure.
    """

    blocks: int
    structures: int
    total_seconds: float
    tracing_seconds: float
    rewriting_seconds: float

    @property
    def rest_seconds(self) -> float:
        """What is neither: matching sites, counting MACs, putting forwards in place."""
        return self.total_seconds - self.tracing_seconds - self.rewriting_seconds


def time_depths(
    model: BenchModel, recipe: Recipe, depths: Sequence[int], on_run: Callable[[], None] = lambda: None
) -> tuple[DepthTiming, ...]:
    """Time `rewrite` with so many blocks of each kind; weights lie on meta, for nothing is computed.

    Args:
        model: What to build.
        recipe: The recipe.
        depths: Blocks of each kind.
        on_run: Called after each depth, for progress bars.
    """
    free = recipe.override({"sites.*.expect": None, "keep_dense.layers": []})
    rewrite(_on_meta(model, 1), free)  # the first call imports what tracing needs
    times = []
    for depth in depths:
        times.append(_time_depth(_on_meta(model, depth), free))
        on_run()
    return tuple(times)


def _on_meta(model: BenchModel, depth: int) -> torch.nn.Module:
    with torch.device("meta"):
        return model.build(**config_of(model, [depth] * len(model.layers))).eval().requires_grad_(False)


def _time_depth(built: torch.nn.Module, recipe: Recipe) -> DepthTiming:
    gc.collect()
    total = _seconds(lambda: rewrite(built, recipe))
    rewriting = rewriting_of(built)
    assert rewriting is not None
    tracing, passes = _tracing_and_passes(built, rewriting)
    return DepthTiming(len(rewriting.bindings), len(rewriting.cache.programs), total, tracing, passes)


def _tracing_and_passes(built: torch.nn.Module, rewriting: Rewriting) -> tuple[float, float]:
    """Repeat the steps of `rewrite` on a cache of its own, and trace what it rewrites once more by itself."""
    recipe, cache = rewriting.recipe, ProgramCache(rewriting.recipe)
    size = example_size(recipe)
    example = partial(example_call, built, recipe, size)
    start = time.perf_counter()
    outer = capture_outer(built, rewriting.bindings, example)
    tracing, passes = time.perf_counter() - start, 0.0
    for call in outer.calls:
        block, places = built.get_submodule(call.path), rewriting.bindings[call.path].places
        run = partial(cache.program, block, call.key, call.leaves, places)
        known = len(cache.programs)
        both = _seconds(run)
        trace = partial(capture_block, block, call.key, call.leaves)
        traced = _seconds(trace) if len(cache.programs) > known else both
        tracing += traced
        passes += both - traced
    return tracing, passes


def _seconds(run: Callable[[], object]) -> float:
    start = time.perf_counter()
    run()
    return time.perf_counter() - start
