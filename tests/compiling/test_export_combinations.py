"""Exported phases of what carries more than tokens: spans, plans that are kept, scores handed on."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
import torch

import sdtm_fx
from sdtm_fx.compiling.loaded import PackagedModel
from tests.compiling.counting import phases_of
from tests.user.cases import SD3, moving

pytestmark = [pytest.mark.compile, pytest.mark.slow]

# Kernels of ahead-of-time code add in another order; values here are of size one.
ROUNDING = 1e-4
PLAIN = {
    "reuse": None,
    "keep_dense": {"first_steps": 1, "last_steps": 0, "every_steps": None},
    "ratio": {"curve": "constant", "start": 0.5},
    "plan.share": ["batch"],
}
SPAN = {"id": "body", "first": 0, "last": 1, "output": 1}
TOMA = {"name": "toma", "region": "tile", "tile": [2, 2], "temperature": 0.1}
INSIDE = {"sites": ["ff"], "method": {"name": "tome", "window": [1, 2]}, "ratio": 0.3}


@dataclass(frozen=True)
class Combination:
    """A recipe of one stage, and what its generation is."""

    stage: Mapping[str, Any]
    changes: Mapping[str, Any] = field(default_factory=dict)
    steps: int = 3
    halves: int = 1

    def recipe(self) -> sdtm_fx.Recipe:
        stages = [{"name": "all", "until": 1.0, **self.stage}]
        return SD3.recipe({**PLAIN, "stages": stages, **self.changes})


SITES = {"sites": ["attn", "ff"]}
COMBINATIONS = {
    "span": Combination({"sites": ["body"], "method": {"name": "ssm"}}, {"spans": [SPAN]}),
    "span of kept plans": Combination(
        {"sites": ["body"], "method": {"name": "local_match"}},
        {"spans": [{**SPAN, "residual": "merged"}], "plan.every_steps": 2, "plan.share": ["cfg"]},
        halves=2,
    ),
    "span that merges further": Combination(
        {"sites": ["body"], "method": {"name": "ssm"}, "inside": INSIDE}, {"spans": [SPAN]}
    ),
    "span of pruned tokens": Combination(
        {"sites": ["body"], "method": {"name": "at_edm", "iterations": 2, "probe_queries": 16}},
        {"spans": [{**SPAN, "enter": "end", "residual": "merged"}]},
    ),
    "span that is forecast": Combination(
        {"sites": ["body"], "method": {"name": "skip"}},
        {
            "spans": [SPAN],
            "ratio": {"curve": "full"},
            "reuse": {"order": 1, "weight": 0.0},
            "keep_dense": {"first_steps": 2, "last_steps": 0, "every_steps": 3},
        },
        steps=5,
    ),
    "toma, plans and destinations kept": Combination(
        {**SITES, "method": TOMA}, {"plan.every_steps": 2, "plan.destinations_every": 4}, steps=6
    ),
    "toma, pseudo-inverse kept": Combination(
        {**SITES, "method": {**TOMA, "unmerge": "pseudo_inverse"}}, {"plan.every_steps": 2}
    ),
    "importance": Combination({**SITES, "method": {"name": "importance"}}, {"plan.share": []}, halves=2),
    "importance, plans kept": Combination(
        {**SITES, "method": {"name": "importance"}},
        {"plan.share": ["cfg"], "plan.every_steps": 2},
        steps=4,
        halves=2,
    ),
}


def generation(model: Any, combination: Combination) -> list[torch.Tensor]:
    outputs, count = [], combination.steps
    clocked = (
        model.steps(count)
        if isinstance(model, PackagedModel)
        else sdtm_fx.steps(model, count, cfg_halves=combination.halves)
    )
    with torch.no_grad(), clocked as clock:
        for step in range(count):
            outputs.append(model(**moving(SD3.inputs(), step, count))[0])
            clock.advance()
    return outputs


@pytest.mark.parametrize("name", COMBINATIONS)
def test_it_is_exported_and_runs_elsewhere(name: str, tmp_path: Path) -> None:
    combination = COMBINATIONS[name]
    model = sdtm_fx.rewrite(SD3.model(), combination.recipe())
    eager = generation(model, combination)
    size = sdtm_fx.Size(grid=(8, 8), batch=2, text=5, steps=combination.steps, cfg_halves=combination.halves)
    sdtm_fx.export(model, tmp_path, size)
    assert len(list(tmp_path.glob("*.pt2"))) == phases_of(model, combination.steps)
    torch.testing.assert_close(generation(model, combination), eager, rtol=0, atol=0)
    loaded = sdtm_fx.load(tmp_path)
    for _ in range(2):  # a second generation finds the state of the first
        torch.testing.assert_close(generation(loaded, combination), eager, rtol=ROUNDING, atol=ROUNDING)
