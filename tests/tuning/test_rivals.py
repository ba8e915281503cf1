"""Recipes written by hand beside a tuned one."""

from __future__ import annotations

import pytest

from sdtm_fx.tuning.pricing import Pricing
from sdtm_fx.tuning.rivals import rivals_at
from tests.tuning.conftest import one_stage


def test_they_come_to_the_budget_by_their_own_knob(pricing: Pricing) -> None:
    skipping = {"stages.all.method": {"name": "skip"}, "keep_dense.every_steps": 2, "name": "skipping"}
    recipes = [one_stage().override(name="merging"), one_stage().override(skipping)]
    found, left_out = rivals_at(1.3, recipes, pricing.target, pricing.size)
    assert not left_out
    assert [(one.label, one.family) for one in found] == [
        ("merging by hand", "merging"),
        ("skipping by hand", "caching"),
    ]
    assert found[0].speedup == pytest.approx(1.3, rel=0.02)
    assert found[0].recipe.ratio != recipes[0].ratio
    assert found[1].recipe.keep_dense.every_steps != recipes[1].keep_dense.every_steps


def test_what_cannot_come_near_it_says_why(pricing: Pricing) -> None:
    found, left_out = rivals_at(5.0, [one_stage()], pricing.target, pricing.size)
    assert not found
    assert len(left_out) == 1
    assert "knob 'ratio': found a budget of 5x; accepted" in left_out[0]


def test_where_ratios_cannot_reach_it_dense_steps_move_apart(pricing: Pricing) -> None:
    """What lives on stored values, as token caches do, merges little and gains by fewer dense steps."""
    stored = one_stage().override(
        {"name": "stored", "keep_dense.every_steps": 2, "reuse": {"order": 0}, "ratio": {"curve": "full"}}
    )
    found, left_out = rivals_at(1.5, [stored], pricing.target, pricing.size)
    assert not left_out
    assert found[0].recipe.ratio == stored.ratio
    assert found[0].recipe.keep_dense.every_steps != stored.keep_dense.every_steps
    assert found[0].speedup == pytest.approx(1.5, rel=0.1)
