"""`sdtm_fx.compile`: every phase of a rewritten model as one graph."""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from typing import Any, TypeVar

import torch

from sdtm_fx.compiling.features import FeatureLayout
from sdtm_fx.compiling.phases import own_code
from sdtm_fx.compiling.regional import RegionalExecutor
from sdtm_fx.compiling.warmup import Size, warm_up
from sdtm_fx.compiling.whole import WholeExecutor
from sdtm_fx.rewrite import rewritten_models
from sdtm_fx.rewriting.rewriting import Rewriting, rewriting_of

Target = TypeVar("Target")

CUDA_GRAPHS = ("reduce-overhead", "max-autotune")
"""Modes of torch.compile that record CUDA graphs."""


def compile(
    target: Target,
    *,
    mode: str | None = None,
    regional: bool = False,
    dynamic: bool | None = None,
    fullgraph: bool = True,
    warmup: Size | Sequence[Size] = (),
    **torch_compile_kwargs: Any,
) -> Target:
    """Compile a rewritten model in place: one graph per phase, made when the phase first runs.

    The clock and the choice of the phase stay outside of compiled code. A second call replaces the first;
    `sdtm_fx.restore` takes everything back.

    Args:
        target: The rewritten model, or its pipeline.
        mode: Of `torch.compile`; ``reduce-overhead`` records CUDA graphs.
        regional: Compile block by block: blocks of one structure share a graph, so there are fewer kernels to
            compile, and what lies around the blocks stays eager. False compiles the whole forward.
        dynamic: Of `torch.compile`: about batch and text length. Token grids are always static: each has its
            own graphs.
        fullgraph: Of `torch.compile`: a graph break is an error.
        warmup: Sizes to compile all phases for right now, behind a progress bar.
        **torch_compile_kwargs: More arguments of `torch.compile`, for instance ``backend``.

    Returns:
        `target` itself.

    Raises:
        RewriteError: Nothing is rewritten there.
    """
    options = {"mode": mode, "dynamic": dynamic, "fullgraph": fullgraph, **torch_compile_kwargs}
    for model in rewritten_models(target):
        rewriting = rewriting_of(model)
        assert rewriting is not None
        _put_in_place(model, rewriting, regional, options)
        for size in (warmup,) if isinstance(warmup, Size) else warmup:
            warm_up(model, rewriting, size)
    return target


def _put_in_place(
    model: torch.nn.Module, rewriting: Rewriting, regional: bool, options: dict[str, Any]
) -> None:
    cuda_graphs = options["mode"] in CUDA_GRAPHS
    layout = FeatureLayout(fixed_addresses=cuda_graphs)
    if not regional:
        whole = WholeExecutor(options, layout, copies=cuda_graphs)
        rewriting.compile_by(model, whole=whole, cuda_graphs=cuda_graphs)
        return
    others = {
        path: _compiled_own(model.get_submodule(path), options) for path in _other_blocks(model, rewriting)
    }
    blocks = RegionalExecutor(options, layout)
    rewriting.compile_by(model, blocks=blocks, others=others, cuda_graphs=cuda_graphs)


def _other_blocks(model: torch.nn.Module, rewriting: Rewriting) -> list[str]:
    """The blocks that are not rewritten: kept dense, or without a site of the recipe."""
    lists = {n: m for n, m in model.named_children() if isinstance(m, torch.nn.ModuleList) and len(m) > 1}
    listed = [f"{name}.{i}" for name, blocks in lists.items() for i in range(len(blocks))]
    return [path for path in dict.fromkeys([*rewriting.kept, *listed]) if path not in rewriting.bindings]


def _compiled_own(block: torch.nn.Module, options: dict[str, Any]) -> Callable[..., Any]:
    """The forward of a block that is not rewritten, compiled."""
    own: Callable[..., Any] = type(block).forward
    compiled = torch.compile(own_code(_run_own, f"{type(block).__name__}_own"), **options)

    @functools.wraps(own)
    def forward(self: torch.nn.Module, *args: Any, **kwargs: Any) -> Any:
        return compiled(own, self, *args, **kwargs)

    return forward


def _run_own(own: Callable[..., Any], block: torch.nn.Module, *args: Any, **kwargs: Any) -> Any:
    return own(block, *args, **kwargs)
