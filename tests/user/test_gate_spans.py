"""The cost gate and spans: the blocks of a span merge all or none."""

from __future__ import annotations

from typing import Any

import pytest
from torch import nn

import sdtm_fx
from sdtm_fx.cost.gate import NOTHING, Offer, together
from sdtm_fx.explaining.report import Explanation
from tests.rates import made_up
from tests.spans.cases import GRID, KEPT, SPAN, TOKENS, recipe, sd3
from tests.user.cases import SD3, all_equal, observed_inputs, run_plain, run_steps

STEPS = 4
LONG = {**SPAN, "id": "long", "first": 0, "last": 2}
SHORT = {**SPAN, "id": "short", "first": 0, "last": 0}
RATE = 4000.0
"""MACs per second: what three blocks save takes longer than what a span starts, what one block saves does not."""
INSIDE = {"sites": ["ff"], "method": {"name": "tome", "window": [1, 2]}, "ratio": 0.3}


def rewritten(*spans: dict[str, Any], **changes: Any) -> nn.Module:
    return sdtm_fx.rewrite(sd3(layers=3), recipe(SD3, *spans, **changes))


def told_of(model: nn.Module) -> Explanation:
    return sdtm_fx.explain(model, steps=STEPS, grid=GRID, batch=2, text=5, quiet=True)


def lengths(model: nn.Module) -> list[int]:
    """Image tokens in the feed-forwards of the second and the third step: one of either stage."""
    with observed_inputs(model, ".ff") as seen:
        run_steps(model, SD3.inputs(), STEPS)
    return [shape[1] for _, shape in seen][3:9]


def test_all_blocks_of_a_span_merge_or_none() -> None:
    gains, loses = Offer(frozenset({"body"}), 3.0, 1.0), Offer(frozenset({"body"}), 0.0, 1.0)
    assert together([[gains], [loses]], 1.0) == (gains, loses)
    assert together([[gains], [loses]], 1.5) == (NOTHING, NOTHING)
    assert together([[loses], [loses]], 0.0) == (NOTHING, NOTHING)


def test_a_span_that_does_not_pay_is_left_out_as_a_whole(measured: Any) -> None:
    inputs, plain = SD3.inputs(), run_plain(sd3(layers=3), SD3.inputs(), STEPS)
    measured(made_up(linear=1e12, launch=1.0))
    model = rewritten(LONG, **{"stages.*.inside": INSIDE})
    assert all_equal(run_steps(model, inputs, STEPS), plain)
    told = told_of(model)
    assert [p.label for p in told.phases] == ["dense"]
    assert {(s.site, s.path) for s in told.gate.sites} == {
        ("long", f"transformer_blocks.{number}") for number in range(3)
    }
    assert told.spans == ()
    assert "as measured" in told.gate.says


@pytest.mark.slow
def test_where_merging_is_free_spans_are_what_the_recipe_says(measured: Any) -> None:
    expected = run_steps(rewritten(LONG, gate="off"), SD3.inputs(), STEPS)
    measured(made_up(linear=1e9))
    model = rewritten(LONG)
    assert all_equal(run_steps(model, SD3.inputs(), STEPS), expected)
    told = told_of(model)
    assert (told.gate.active, told.gate.sites) == (True, ())
    assert {span.span for span in told.spans} == {"long"}


def test_a_long_span_may_pay_where_a_short_one_does_not(measured: Any) -> None:
    """Merging, unmerging and the plan cost the same; what they save grows with the blocks in between."""
    measured(made_up(linear=RATE, launch=1.0))
    model = rewritten(LONG, SHORT, **{"stages.structure.sites": ["long"], "stages.detail.sites": ["short"]})
    assert lengths(model) == [KEPT] * 3 + [TOKENS] * 3
    told = told_of(model)
    assert {(s.stage, s.site) for s in told.gate.sites} == {("detail", "short")}
    assert {(span.phase, span.span) for span in told.spans} == {(1, "long")}
    left = [s for s in told.sites if s.phase == 0]
    assert {s.skipped for s in left} == {"the step is dense"}


def test_spans_of_one_block_are_weighed_one_by_one(measured: Any) -> None:
    measured(made_up(linear=RATE, launch=1.0))
    model = rewritten({**SPAN, "id": "once", "first": r"re:.*\.[12]", "last": r"re:.*\.[12]"})
    with sdtm_fx.record_plans(model) as record:
        run_steps(model, SD3.inputs(), STEPS)
    assert {site.action for site in record} == {"dense"}
    sites = told_of(model).gate.sites
    assert [s.path for s in sites if s.stage == "structure"] == [
        "transformer_blocks.1",
        "transformer_blocks.2",
    ]
    assert all(s.spent > s.saved > 0 for s in sites)
