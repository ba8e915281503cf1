"""On dense steps of SDTM*, the first site of a block counts what could be merged; nothing else changes."""

from __future__ import annotations

import pytest
import torch

from sdtm_fx.runtime import ops
from sdtm_fx.runtime.call import Variant
from tests.passes.blocks import TOKENS, GatedBlock, ParallelBlock, condition, image, text
from tests.passes.working import ATTN, FF, PARALLEL, REUSE, Calls, close, recipe, work_on

X, T, C = image(), text(), condition()
THRESHOLD = {"threshold": -1.0, "start": 0.5}
MEASURE = Variant(stage=None, measure=0)


def test_the_first_site_is_measured() -> None:
    worked = work_on(GatedBlock(), (X, C), recipe([FF, ATTN], ratio=THRESHOLD), variant=MEASURE)
    assert worked.applied["measure_threshold"] == 1
    assert worked.inputs_of("attn") == (ops.measure_tokens,)  # the recipe's order is not the block's
    assert worked.inputs_of("ff") != (ops.measure_tokens,)
    assert worked.count(ops.plan_tokens) == worked.count(ops.unmerge_tokens) == 0


@pytest.mark.parametrize(("threshold", "count"), [(-1.0, TOKENS // 4 * 3), (1.5, 0)])
def test_measuring_changes_no_value(threshold: float, count: int) -> None:
    block, rules = GatedBlock(), recipe([ATTN, FF], ratio=THRESHOLD)
    worked, calls = work_on(block, (X, C), rules, variant=MEASURE), Calls(rules)
    with torch.no_grad():
        assert torch.equal(
            worked.run(X, C, call=calls.make(variant=MEASURE, threshold=threshold)), block(X, C)
        )
    assert {k: int(v) for k, v in calls.state.above.items()} == {0: count}


def test_text_in_front_is_not_counted() -> None:
    block, rules = ParallelBlock(), recipe(PARALLEL, ratio=THRESHOLD)
    worked, calls = work_on(block, (X, T, C), rules, variant=MEASURE), Calls(rules)
    with torch.no_grad():
        close(worked.run(X, T, C, call=calls.make(variant=MEASURE, threshold=-1.0)), block(X, T, C), 0.0)
    assert int(calls.state.above[0]) == TOKENS // 4 * 3


def test_a_stage_that_merges_is_not_measured_here() -> None:
    worked = work_on(GatedBlock(), (X, C), recipe([ATTN, FF], ratio=THRESHOLD))
    assert worked.applied["measure_threshold"] == 0
    assert worked.count(ops.measure_tokens) == 0


def test_sites_outside_the_stage_are_not_measured() -> None:
    worked = work_on(
        GatedBlock(), (X, C), recipe([ATTN, FF], merged=["ff"], ratio=THRESHOLD), variant=MEASURE
    )
    assert worked.inputs_of("ff") == (ops.measure_tokens,)


def test_a_dense_step_may_measure_and_store() -> None:
    rules = recipe([ATTN, FF], ratio=THRESHOLD, reuse=REUSE)
    both = Variant(stage=None, refresh=0, measure=0)
    block, calls = GatedBlock(), Calls(rules)
    worked = work_on(block, (X, C), rules, variant=both)
    with torch.no_grad():
        assert torch.equal(worked.run(X, C, call=calls.make(variant=both, threshold=0.0)), block(X, C))
    assert sorted(calls.state.features) == [(0, "attn"), (0, "ff")]
    assert list(calls.state.above) == [0]
