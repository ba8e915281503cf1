"""Counting what the compiler did."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch._dynamo.utils import counters

from sdtm_fx.compiling.warmup import distinct_phases
from tests.user.cases import the_rewriting

# One level, so that two stages, storing dense steps and plain dense steps are the phases.
FEW = {"ratio": {"curve": "constant", "start": 0.5}}


class Graphs:
    """How many graphs were made since."""

    def __init__(self) -> None:
        self._before = _graphs()

    @property
    def made(self) -> int:
        return _graphs() - self._before


def _graphs() -> int:
    return int(counters["stats"]["unique_graphs"])


def graph_breaks() -> dict[str, int]:
    return dict(counters["graph_break"])


def phases_of(model: torch.nn.Module, steps: int, grid: tuple[int, int] = (8, 8), text: int = 5) -> int:
    """How many phases a generation has, told from its schedule alone."""
    rewriting = the_rewriting(model)
    return len(list(distinct_phases(rewriting, rewriting.runtime.schedule(steps, grid, text, 2))))


@contextmanager
def no_new_graph() -> Iterator[None]:
    """A recompilation is an error, and so is a graph of new code."""
    graphs = Graphs()
    with torch._dynamo.config.patch(error_on_recompile=True):
        yield
    assert graphs.made == 0


def features_of(model: torch.nn.Module) -> list[Any]:
    branches = the_rewriting(model).runtime.state.branches.values()
    return [f.newer for branch in branches for f in branch.features.values()]
