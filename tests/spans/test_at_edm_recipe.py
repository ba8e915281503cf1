"""AT-EDM as SDTM's authors mapped it to a transformer: groups of blocks, and a prune-less start."""

from __future__ import annotations

import sdtm_fx
from tests.spans.cases import sd3
from tests.user.cases import SD3, observed_inputs, run_steps

# 24 blocks in 6 groups of four, the first three groups "down" and the last three "up". Tokens are pruned behind the
# first block of a group, and filled up at its end. In the first 30 % of the steps (15 of 50, T to 0.7 T), the first
# group down and the last up stay as they are (schedule F-L).
RECIPE = r"""
version: 1
name: at-edm-sd3
extends: sd3-medium-windows
spans:
  - id: edges
    first: "re:transformer_blocks\\.(0|20)"
    last: "re:transformer_blocks\\.(3|23)"
    enter: end
    residual: merged
    output: 1
  - id: middle
    first: "re:transformer_blocks\\.(4|8|12|16)"
    last: "re:transformer_blocks\\.(7|11|15|19)"
    enter: end
    residual: merged
    output: 1
stages:
  - {name: prune-less, until: 0.3, sites: [middle], method: {name: at_edm}}
  - {name: normal, until: 1.0, sites: [edges, middle], method: {name: at_edm}}
ratio: {curve: constant, start: 0.63}
keep_dense: {first_steps: 0, last_steps: 0, every_steps: null}
reuse: null
plan: {round_to: 1}
"""


def test_groups_are_pruned_behind_their_first_block() -> None:
    rules = sdtm_fx.load_recipe(sdtm_fx.Recipe.from_yaml_text(RECIPE).override({"sites.*.expect": None}))
    model = sd3(layers=24)
    sdtm_fx.rewrite(model, rules)
    with observed_inputs(model, "ff") as seen:  # attention that is read runs as a graph, and calls no module
        outputs = run_steps(model, SD3.inputs(), 10)
    assert all(bool(output.isfinite().all()) for output in outputs)
    lengths = [[shape[1] for _, shape in seen[24 * step : 24 * step + 24]] for step in range(10)]
    kept = 64 - round(0.63 * 64)
    group, whole = [64, kept, kept, kept], [64] * 4
    assert lengths[0] == lengths[2] == whole + 4 * group + whole
    assert lengths[3] == lengths[9] == 6 * group


def test_fifty_steps_start_with_fifteen_that_prune_less() -> None:
    rules = sdtm_fx.Recipe.from_yaml_text(RECIPE).override({"sites.*.expect": None})
    model = sd3(layers=24)
    sdtm_fx.rewrite(model, rules)
    told = sdtm_fx.explain(model, steps=50, grid=(64, 64), batch=2, text=333, quiet=True)
    assert [(p.label, p.steps) for p in told.phases] == [
        ("prune-less", tuple(range(15))),
        ("normal", tuple(range(15, 50))),
    ]
    assert {p.removed for p in told.phases} == {round(0.63 * 4096)}
    early, late = (p.macs for p in told.phases)
    assert late.linear < early.linear < told.dense.linear
    assert [s.first for s in told.spans if s.phase == 0] == [
        f"transformer_blocks.{i}" for i in (4, 8, 12, 16)
    ]
