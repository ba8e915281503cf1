"""Settings and the recipes that say them."""

from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sdtm_fx.curve import ratio_curve
from sdtm_fx.errors import SdtmFxError
from sdtm_fx.recipe import load_recipe
from sdtm_fx.recipe.ratio import CurveRatio
from sdtm_fx.schedule import build_schedule
from sdtm_fx.tuning.patterns import dense_patterns
from sdtm_fx.tuning.setting import Setting, as_written, changes, setting_of
from sdtm_fx.tuning.starts import falling

BASE = load_recipe("toy-sd3-merge")
_SSM = {"stages": [{"name": "all", "until": 1.0, "sites": ["ff"], "method": {"name": "ssm"}}]}
CACHE = Setting(
    dense=(0, 3),
    ends=(3, 8),
    removed=(1.0, 1.0),
    left=(1.0, 1.0),
    order=1,
    weight=0.1,
    sites=(("attn", "ff"),) * 2,
)


def test_a_recipe_becomes_a_setting_of_its_stages() -> None:
    found = setting_of(BASE, 10, removed=0.5)
    assert (found.ends, found.removed, found.order) == ((4, 10), (0.5, 0.5), None)
    assert found.sites == (("attn", "ff"), ("attn", "ff"))


def test_a_recipe_that_forecasts_stays_what_it_is() -> None:
    base = load_recipe("sd3-medium")
    found = setting_of(base, 10, removed=0.5)
    assert (found.ends, found.removed, found.sites) == ((10,), (1.0,), (("blocks",),))
    said = base.override({"name": "said", **changes(replace(found, order=0, dense=(0, 5)), base)})
    assert (said.stages, said.spans) == (base.stages, base.spans)
    assert said.keep_dense.steps == (0, 5)


def test_a_recipe_as_it_is_written() -> None:
    cached = as_written(load_recipe("sd3-medium"), 10)
    assert cached is not None
    assert (cached.dense, cached.order, cached.weight) == ((0, 1, 2, 3, 6, 9), 1, 0.0)
    assert cached.caches
    few = as_written(load_recipe("toy-sd3-few"), 4)
    assert few is not None
    assert (few.dense, few.order, few.ends) == ((), None, (2, 4))
    assert few.removed == pytest.approx((0.75, 0.25))
    assert few.left == pytest.approx((2 / 3, 0.0))
    own = BASE.override({"stages.detail.ratio": {"curve": "linear", "start": 0.2, "end": 0.4}})
    rising = as_written(own, 10)
    assert rising is not None
    assert rising.removed == pytest.approx((0.7, 0.2))
    assert rising.left == pytest.approx((1.0, 2.0))


@pytest.mark.parametrize(
    "ratio",
    [
        {"threshold": 0.9, "start": 0.7},
        {"curve": "full"},
        {"curve": "linear", "start": 0.0, "end": 0.5},
    ],
)
def test_a_recipe_whose_ratio_is_no_line_is_no_setting(ratio: dict[str, object]) -> None:
    assert as_written(load_recipe("toy-sd3-windows").override({**_SSM, "ratio": ratio}), 8) is None


def test_every_stage_has_a_step_at_least() -> None:
    early = BASE.override({"stages.structure.until": 0.01})
    assert setting_of(early, 8, removed=0.5).ends == (1, 8)
    late = BASE.override({"stages.structure.until": 0.99})
    assert setting_of(late, 8, removed=0.5).ends == (7, 8)


def test_what_cannot_be_tuned() -> None:
    with pytest.raises(
        SdtmFxError,
        match=r"method skip in stage 'detail' beside stages that merge; accepted .* such as sd3-medium-merge .* or all",
    ):
        setting_of(load_recipe("sd3-medium-windows"), 8, removed=0.5)
    with pytest.raises(
        SdtmFxError, match="found the span 'middle' in stage 'prune-less'; accepted sites only"
    ):
        setting_of(load_recipe("baselines/at-edm-sd3-medium"), 8, removed=0.5)
    with pytest.raises(SdtmFxError, match="found 1 steps; accepted 2 or more, one for each stage"):
        setting_of(BASE, 1, removed=0.5)


def test_a_setting_is_said_as_a_recipe() -> None:
    mixed = replace(CACHE, removed=(0.4, 1.0), whole=(0, 5), plan_steps=2, sites=(("ff",), ("attn", "ff")))
    said = BASE.override({"name": "said", **changes(mixed, BASE)})
    assert [stage.method.name for stage in said.stages] == ["ssm", "skip"]
    assert said.stages[0].sites == ("ff",)
    assert (said.keep_dense.steps, said.keep_dense.layers) == ((0, 3), (0, 5))
    assert said.reuse is not None
    assert said.reuse.order == 1
    assert said.plan.every_steps == 2
    schedule = build_schedule(said, steps=8, grid=(32, 32))
    assert [step for step in range(8) if schedule.phase(step).stage is None] == [0, 3]
    assert [schedule.phase(step).stage for step in (1, 2, 4)] == [0, 0, 1]


def test_boundaries_are_said_where_they_tell_stages_apart() -> None:
    apart = replace(CACHE, ends=(5, 8), sites=(("ff",), ("attn", "ff")))
    said = BASE.override({"name": "apart", **changes(apart, BASE)})
    assert [stage.until for stage in said.stages] == [5 / 8, 1.0]
    same = BASE.override({"name": "same", **changes(replace(CACHE, ends=(5, 8)), BASE)})
    assert [stage.until for stage in same.stages] == [stage.until for stage in BASE.stages]


def test_no_forecast_is_no_reuse() -> None:
    plain = replace(CACHE, removed=(0.4, 0.4), order=None, dense=())
    assert BASE.override({"name": "plain", **changes(plain, BASE)}).reuse is None


def test_equal_points_are_equal() -> None:
    other = replace(CACHE, ends=(5, 8), weight=0.3, plan_steps=3)
    assert other != CACHE
    assert CACHE.canonical() == other.canonical()
    told_apart = replace(other, sites=(("ff",), ("attn", "ff")))
    assert told_apart.canonical().ends == (5, 8)
    merging = replace(CACHE, removed=(0.5, 1.0))
    assert merging.canonical() == merging


def test_scaling_leaves_forecasts_alone() -> None:
    assert replace(CACHE, removed=(0.5, 1.0)).scaled(0.5).removed == (0.25, 1.0)


@settings(max_examples=60, deadline=None)
@given(steps=st.integers(1, 60), data=st.data())
def test_patterns_are_different_sets_of_as_many_steps(steps: int, data: st.DataObject) -> None:
    count = data.draw(st.integers(1, steps))
    patterns = dense_patterns(steps, count)
    assert len(set(patterns)) == len(patterns) >= 1
    for pattern in patterns:
        assert list(pattern) == sorted(set(pattern))
        assert len(pattern) == count
        assert pattern[0] == 0
        assert pattern[-1] < steps


def test_the_patterns_of_three_of_eight_steps() -> None:
    assert dense_patterns(8, 3) == ((0, 2, 5), (0, 1, 2), (0, 1, 7), (0, 4, 7), (0, 1, 4), (0, 1, 3))


def test_a_third_of_the_dense_steps_may_lead_and_the_last_step_be_one() -> None:
    assert (0, 1, 2, 3, 6, 9, 12, 15, 18, 21, 24, 27) in dense_patterns(28, 12)


def test_a_fraction_falls_on_a_line_inside_of_its_stage() -> None:
    plain = replace(CACHE, removed=(0.6, 0.4), left=(0.5, 0.0), order=None, dense=())
    said = BASE.override({"name": "said", "plan.round_to": 1, **changes(plain, BASE)})
    ratios = build_schedule(said, steps=8, grid=(32, 32)).ratios
    assert ratios == pytest.approx((0.6, 0.45, 0.3, 0.4, 0.3, 0.2, 0.1, 0.0))


def test_what_falls_in_no_step_is_equal_to_what_stays() -> None:
    setting = replace(CACHE, ends=(1, 8), removed=(0.5, 1.0), left=(0.5, 0.5))
    assert setting.canonical().left == (1.0, 1.0)
    assert replace(setting, ends=(2, 8)).canonical().left == (0.5, 1.0)


@settings(max_examples=60, deadline=None)
@given(steps=st.integers(3, 40), end=st.integers(1, 38), last=st.sampled_from([1.0, 0.5, 0.25]))
def test_a_falling_start_is_one_line_through_all_stages(steps: int, end: int, last: float) -> None:
    base = replace(setting_of(BASE, steps, removed=0.6), ends=(min(end, steps - 1), steps))
    fallen = falling(base, last)
    said = BASE.override({"name": "said", "plan.round_to": 1, **changes(fallen, BASE)})
    ratios = build_schedule(said, steps=steps, grid=(32, 32)).ratios
    line = ratio_curve(CurveRatio(curve="linear", start=0.6, end=0.6 * last), steps)
    assert ratios == pytest.approx(line, abs=1e-3)
