"""Blocks: the modules whose forwards call the sites, with their graphs."""

from __future__ import annotations

from collections.abc import Iterable

import torch

from sdtm_fx.capture.arguments import flatten
from sdtm_fx.capture.blocks import capture_block, capture_outer
from sdtm_fx.capture.tracer import Capture
from sdtm_fx.errors import CaptureError
from sdtm_fx.inspecting.calling import FoundCall
from sdtm_fx.inspecting.observing import AttentionCall, block_arguments
from sdtm_fx.inspecting.survey import BlockStructure
from sdtm_fx.rewriting.structure import leaf_traits
from sdtm_fx.sites.matching import block_of


def blocks_with_attention(model: torch.nn.Module, attention: Iterable[AttentionCall]) -> list[str]:
    """Paths of the blocks in which attention is computed on image tokens, in the order of execution."""
    paths = (block_path(model, call.path) for call in attention if call.queries.image > 0)
    return [path for path in dict.fromkeys(paths) if path]


def block_path(model: torch.nn.Module, path: str) -> str:
    """The block of a module: its nearest ancestor in a list, or itself where it is an entry of one."""
    owner, _, last = path.rpartition(".")
    if last.isdigit() and isinstance(model.get_submodule(owner), torch.nn.ModuleList):
        return path
    return block_of(model, path)


def capture_blocks(
    model: torch.nn.Module, call: FoundCall, paths: list[str]
) -> tuple[dict[str, Capture], dict[str, str]]:
    """Trace the blocks of a model.

    Returns:
        The graphs by path, and for blocks without one, why.
    """
    found: dict[str, Capture] = {}
    why_not: dict[str, str] = {}
    for path, calls in block_arguments(model, call, set(paths)).items():
        if len(calls) > 1:
            why_not[path] = f"its block {path} is called {len(calls)} times"
            continue
        try:
            found[path] = capture_block(model.get_submodule(path), *flatten(calls[0]))
        except CaptureError as error:
            why_not[path] = f"its block cannot be traced: {error}"
    return found, why_not


def structures_of(model: torch.nn.Module, captures: dict[str, Capture]) -> tuple[BlockStructure, ...]:
    """Group blocks by their graphs, in the order of execution."""
    groups: dict[tuple[object, ...], list[str]] = {}
    for path, capture in captures.items():
        block = model.get_submodule(path)
        key = (type(block), capture.key, str(capture.graph), leaf_traits(block, capture))
        groups.setdefault(key, []).append(path)
    return tuple(
        BlockStructure(tuple(paths), type(model.get_submodule(paths[0])).__name__, captures[paths[0]].graph)
        for paths in groups.values()
    )


def outer_nodes(model: torch.nn.Module, call: FoundCall, blocks: Iterable[str]) -> int | str:
    """How many nodes the model's own graph has around its blocks, or why it cannot be traced."""
    try:
        outer = capture_outer(model, list(blocks), lambda: call.values(call.sizes))
    except CaptureError as error:
        return str(error)
    return len(list(outer.graph.nodes))
