"""Schedules of recipes: stages, dense steps, skips, reuse, plan sharing, thresholds, errors."""

from __future__ import annotations

import itertools
import logging
import math
from types import SimpleNamespace
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sdtm_fx.errors import ScheduleError
from sdtm_fx.schedule import Phase, Schedule, build_schedule
from sdtm_fx.step_counts import spread_steps
from tests.schedule.recipes import MATCH, SKIP, SSM, cosine, make, stage

GRIDS = {1024: (32, 32), 4096: (64, 64), 4080: (51, 80), 9216: (96, 96)}


def removed(schedule: Schedule) -> list[int]:
    return [schedule.phase(step).remove for step in range(schedule.steps)]


def stages(schedule: Schedule) -> list[int | None]:
    return [schedule.phase(step).stage for step in range(schedule.steps)]


@pytest.mark.parametrize(("steps", "switch"), [(50, 20), (28, 11), (20, 8), (10, 4), (5, 2)])
def test_stages_switch_at_a_fraction_of_the_steps(steps: int, switch: int) -> None:
    schedule = build_schedule(make(), steps=steps, grid=(64, 64))
    assert stages(schedule) == [None] + [0] * (switch - 1) + [1] * (steps - switch - 1) + [None]


@pytest.mark.parametrize("tokens", sorted(GRIDS))
@pytest.mark.parametrize("steps", [20, 28, 50])
def test_the_mean_cost_is_that_of_the_curve(tokens: int, steps: int) -> None:
    schedule = build_schedule(make(), steps=steps, grid=GRIDS[tokens])
    curve = [0.3 + 0.4 * math.cos(math.pi * t / (2 * (steps - 1))) for t in range(steps)]
    kept = [1 - curve[t] if 0 < t < steps - 1 else 1.0 for t in range(steps)]
    wanted = sum(k * 2 / 3 + k * k / 3 for k in kept)
    actual = [(tokens - n) / tokens for n in removed(schedule)]
    assert sum(k * 2 / 3 + k * k / 3 for k in actual) == pytest.approx(wanted, rel=0.01)
    assert abs(schedule.cost_error) < 0.01
    assert schedule.round_to_used == 64
    assert len({n for n in removed(schedule) if n}) <= 4
    assert len(schedule.phases) <= 6  # four counts, one of them in both stages, and dense
    assert all((tokens - n) % 64 == 0 and n % 3 == 0 for n in removed(schedule) if n)


@settings(max_examples=25, deadline=None)
@given(
    start=st.floats(0.2, 0.73),
    end=st.floats(0.05, 0.73),
    curve=st.sampled_from(["cosine", "linear"]),
    tokens=st.sampled_from(sorted(GRIDS)),
    steps=st.sampled_from([20, 28, 50]),
    linear_share=st.floats(0.2, 1.0),
)
def test_any_curve_and_any_cost(
    start: float, end: float, curve: str, tokens: int, steps: int, linear_share: float
) -> None:
    ratio = {"curve": curve, "start": start, "end": end}

    def cost(stage: int | None, remove: int) -> float:
        kept = (tokens - remove) / tokens
        attention = 0.4 * kept * kept if stage == 0 else 0.4  # the second stage leaves attention dense
        return linear_share * kept + attention

    schedule = build_schedule(make(ratio=ratio), steps=steps, grid=GRIDS[tokens], cost=cost)
    own = [0 if t < round(0.4 * steps) else 1 for t in range(steps)]
    counts = removed(schedule)
    wanted = actual = 0.0
    for t in range(1, steps - 1):
        below, part = divmod(schedule.ratios[t] * tokens, 1.0)
        wanted += (1 - part) * cost(own[t], int(below)) + part * cost(own[t], int(below) + 1)
        actual += cost(own[t], counts[t])
    assert actual == pytest.approx(wanted, rel=0.01)


@pytest.mark.parametrize(
    ("steps", "grid"), [(4, (16, 16)), (8, (16, 16)), (4, (64, 64)), (1, (8, 8)), (2, (2, 2))]
)
def test_few_steps_and_small_grids(steps: int, grid: tuple[int, int]) -> None:
    schedule = build_schedule(make(), steps=steps, grid=grid)
    assert abs(schedule.cost_error) <= 0.01
    assert len(schedule.phases) <= steps
    assert 1 <= schedule.round_to_used <= 64


def test_alignment_is_relaxed_and_said_so(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.INFO, logger="sdtm_fx.schedule"):
        schedule = build_schedule(make(), steps=28, grid=(16, 16))
    assert schedule.round_to_used == 16
    assert all((256 - n) % 16 == 0 for n in removed(schedule))
    assert "kept counts are multiples of 16" in caplog.text
    assert f"{len(schedule.phases)} phases" in caplog.text


def test_keep_dense() -> None:
    keep = {"first_steps": 2, "last_steps": 3, "every_steps": 5}
    schedule = build_schedule(make(keep_dense=keep), steps=20, grid=(64, 64))
    dense = [t for t in range(20) if stages(schedule)[t] is None]
    assert dense == [0, 1, 5, 10, 15, 17, 18, 19]


@pytest.mark.parametrize(
    ("every", "dense"),
    [
        (2, [0, 2, 4, 6, 8, 10]),
        (2.0, [0, 2, 4, 6, 8, 10]),
        (2.5, [0, 2, 5, 7, 10]),
        (1.5, [0, 1, 3, 4, 6, 7, 9, 10]),
        (4 / 3, [0, 1, 2, 4, 5, 6, 8, 9, 10]),
        (1.1, [0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 11]),
        (30.5, [0]),
    ],
)
def test_dense_steps_may_lie_a_fraction_apart(every: float, dense: list[int]) -> None:
    keep = {"first_steps": 0, "last_steps": 0, "every_steps": every}
    schedule = build_schedule(make(keep_dense=keep), steps=12, grid=(64, 64))
    assert [t for t in range(12) if stages(schedule)[t] is None] == dense


@settings(deadline=None)
@given(st.floats(1.001, 40), st.integers(1, 60))
def test_a_fraction_spreads_dense_steps_evenly(every: float, steps: int) -> None:
    dense = spread_steps(every, steps)
    assert dense[0] == 0
    gaps = {b - a for a, b in itertools.pairwise(dense)}
    assert gaps <= {math.floor(every), math.ceil(every)}
    assert abs(len(dense) - steps / every) <= 1
    assert max(dense) < steps


def test_nothing_dense() -> None:
    keep = {"first_steps": 0, "last_steps": 0}
    schedule = build_schedule(make(keep_dense=keep), steps=20, grid=(64, 64))
    assert None not in stages(schedule)
    assert schedule.phases[0].stage == 0


def test_more_dense_steps_than_steps() -> None:
    schedule = build_schedule(make(keep_dense={"first_steps": 3, "last_steps": 3}), steps=4, grid=(64, 64))
    assert schedule.phases == (Phase(None, 0, False),)
    assert schedule.phase_of_step == (0,) * 4
    assert schedule.cost_error == 0.0


def test_dense_steps_refresh_when_features_are_reused() -> None:
    recipe = make(keep_dense={"every_steps": 4}, reuse={"order": 1, "weight": 0.1})
    schedule = build_schedule(recipe, steps=10, grid=(64, 64))
    assert [t for t in range(10) if schedule.phase(t).refresh] == [0, 4, 8, 9]
    assert [schedule.last_refresh(t) for t in range(10)] == [0, 0, 0, 0, 4, 4, 4, 4, 8, 9]
    plain = build_schedule(make(keep_dense={"every_steps": 4}), steps=10, grid=(64, 64))
    assert not any(plain.phase(t).refresh for t in range(10))
    assert plain.last_refresh(9) is None


def test_skip_removes_everything_and_ignores_the_ratio() -> None:
    recipe = make(
        stages=[stage("structure", 0.4, SSM), stage("late", 1.0, SKIP)],
        reuse={"order": 0, "weight": 0.0},
        keep_dense={"every_steps": 2},
        plan={"every_steps": 3},
    )
    schedule = build_schedule(recipe, steps=10, grid=(64, 64))
    assert removed(schedule)[4:] == [0, 4096, 0, 4096, 0, 0]
    skip = [phase for phase in schedule.phases if phase.remove == 4096]
    assert skip == [Phase(stage=1, remove=4096, refresh=False, fresh_plan=True)]


def test_ratio_zero_is_dense() -> None:
    ratio = {"curve": "list", "values": [0.0, 0.5, 0.5, 0.0, 0.5, 0.5]}
    recipe = make(ratio=ratio, keep_dense={"first_steps": 0, "last_steps": 0})
    schedule = build_schedule(recipe, steps=6, grid=(64, 64))
    assert stages(schedule) == [None, 0, 1, None, 1, 1]


def test_a_ratio_of_a_stage_spans_the_stage() -> None:
    recipe = make(
        stages=[
            stage("structure", 0.5, SSM),
            stage("detail", 1.0, MATCH, ratio={"curve": "linear", "start": 0.6, "end": 0.2}),
        ],
        ratio={"curve": "constant", "start": 0.375},
    )
    schedule = build_schedule(recipe, steps=20, grid=(64, 64))
    assert set(removed(schedule)[1:10]) == {1536}
    assert schedule.ratios[10] == pytest.approx(0.6)
    assert schedule.ratios[18] == pytest.approx(0.6 - 0.4 * 8 / 9)
    assert removed(schedule)[10:19] == sorted(removed(schedule)[10:19], reverse=True)
    assert len(set(removed(schedule)[10:19])) <= 4


def test_plans_are_kept_within_runs_of_one_count() -> None:
    recipe = make(
        ratio={"curve": "constant", "start": 0.375}, plan={"every_steps": 3}, keep_dense={"every_steps": 8}
    )
    schedule = build_schedule(recipe, steps=20, grid=(64, 64))
    fresh = "".join("F" if schedule.phase(t).fresh_plan else "k" for t in range(20))
    # dense at 0, 8, 16, 19; the stage changes at 8
    assert fresh == "F" + "FkkFkkF" + "F" + "FkkFkkF" + "F" + "Fk" + "F"
    assert len(schedule.phases) == 5


def test_every_plan_is_fresh_by_default() -> None:
    schedule = build_schedule(make(), steps=28, grid=(64, 64))
    assert all(phase.fresh_plan for phase in schedule.phases)


@pytest.mark.parametrize(("end", "below"), [(0.0, None), (0.2, 0)])
def test_threshold(end: float, below: int | None) -> None:
    recipe = make(
        ratio={"threshold": 0.9, "start": 0.6, "end": end, "levels": 3}, stages=[stage("all", 1.0, SSM)]
    )
    schedule = build_schedule(recipe, steps=10, grid=(64, 64))
    assert stages(schedule) == [None] * 10  # nothing is measured yet
    counts = [schedule.phases[index].remove for index in schedule.choices[3]]
    merged = [n for n in counts if n]
    assert len(merged) == 3
    assert all(n % 3 == 0 and (4096 - n) % 64 == 0 and n <= 0.6 * 4096 for n in merged)
    assert counts == sorted(counts)
    assert schedule.phase_for_count(3, None).stage is None
    assert schedule.phase_for_count(3, merged[0] - 1).stage == below
    assert schedule.phase_for_count(3, merged[0]).remove == merged[0]
    assert schedule.phase_for_count(3, merged[1] + 1).remove == merged[1]
    assert schedule.phase_for_count(3, 4096).remove == merged[-1]
    assert schedule.phase_for_count(0, 4096).stage is None  # kept dense
    assert len(schedule.phases) == 4


def test_threshold_levels_are_evenly_spaced() -> None:
    recipe = make(ratio={"threshold": 0.9, "start": 0.6, "levels": 4}, stages=[stage("all", 1.0, SSM)])
    schedule = build_schedule(recipe, steps=10, grid=(64, 64))
    counts = [schedule.phases[index].remove for index in schedule.choices[3]]
    assert counts == [0, 576, 1152, 1920, 2304]
    one = make(ratio={"threshold": 0.9, "start": 0.5, "levels": 1}, stages=[stage("all", 1.0, SSM)])
    schedule = build_schedule(one, steps=10, grid=(64, 64))
    assert [schedule.phases[index].remove for index in schedule.choices[3]] == [0, 1920]


def test_fixed_steps_ignore_a_measured_count() -> None:
    schedule = build_schedule(make(), steps=10, grid=(64, 64))
    assert schedule.phase_for_count(3, 5) == schedule.phase(3)


def test_measured_steps_are_no_sure_refresh() -> None:
    recipe = make(
        ratio={"threshold": 0.9, "start": 0.6},
        stages=[stage("all", 1.0, SSM)],
        keep_dense={"every_steps": 4},
        reuse={"order": 0, "weight": 0.5},
    )
    schedule = build_schedule(recipe, steps=10, grid=(64, 64))
    assert [schedule.last_refresh(t) for t in range(10)] == [0, 0, 0, 0, 4, 4, 4, 4, 8, 9]


def test_a_ratio_out_of_reach_is_an_error() -> None:
    threshold = make(ratio={"threshold": 0.9, "start": 0.74}, stages=[stage("all", 1.0, SSM)])
    # 25 x 40 windows of 2 x 2 on a 51 x 80 grid give up 3,000 of 4,080 tokens.
    match = (
        r"test: stage 'structure': found ratio 0\.74\d* on a 51x80 grid; ssm can remove at most 3000 of 4080 "
        r"tokens there \(ratio 0\.7353\)"
    )
    with pytest.raises(ScheduleError, match=match):
        build_schedule(make(ratio=cosine(0.745, 0.3)), steps=28, grid=(51, 80))
    build_schedule(make(ratio=cosine(0.735, 0.3)), steps=28, grid=(51, 80))
    with pytest.raises(ScheduleError, match=r"found ratio 0\.74 on a 51x80 grid"):
        build_schedule(threshold, steps=28, grid=(51, 80))


def test_reuse_before_the_first_refresh_is_an_error() -> None:
    recipe = make(reuse={"order": 0, "weight": 0.5})
    late: Any = SimpleNamespace(
        **{name: getattr(recipe, name) for name in ("name", "stages", "ratio", "plan", "reuse")},
        keep_dense=SimpleNamespace(first_steps=0, last_steps=1, every_steps=None, steps=()),
    )
    with pytest.raises(ScheduleError, match=r"test: stage 'structure' reuses features at step 0 of 10"):
        build_schedule(late, steps=10, grid=(64, 64))


def test_steps_and_grid_are_checked() -> None:
    with pytest.raises(ScheduleError, match="found 0 steps on a 64x64 grid; accepted: at least 1 each"):
        build_schedule(make(), steps=0, grid=(64, 64))
    with pytest.raises(ScheduleError, match="found 5 steps on a 0x64 grid"):
        build_schedule(make(), steps=5, grid=(0, 64))
    schedule = build_schedule(make(), steps=5, grid=(64, 64))
    for call in (schedule.phase, schedule.last_refresh, lambda step: schedule.phase_for_count(step, 3)):
        for step in (-1, 5):
            with pytest.raises(ScheduleError, match=rf"step: found {step}; accepted: 0 to 4"):
                call(step)


def test_an_empty_stage_is_no_error() -> None:
    stages_ = [stage("a", 0.05, SSM), stage("b", 1.0, MATCH)]
    schedule = build_schedule(make(stages=stages_), steps=4, grid=(64, 64))
    assert stages(schedule) == [None, 1, 1, None]


def test_destinations_outlive_plans_within_runs_of_one_count() -> None:
    recipe = make(
        stages=[stage("all", 1.0, {"name": "toma"})],
        ratio={"curve": "constant", "start": 0.375},
        plan={"every_steps": 2, "destinations_every": 6},
        keep_dense={"every_steps": 11, "last_steps": 0},
    )
    schedule = build_schedule(recipe, steps=20, grid=(64, 64))
    phases = [schedule.phase(t) for t in range(20)]
    # D chooses destinations, w weighs tokens for those of an earlier step, k keeps the whole plan.
    said = "".join("k" if not p.fresh_plan else "D" if p.fresh_destinations else "w" for p in phases)
    # dense at 0 and 11
    assert said == "D" + "DkwkwkDkwk" + "D" + "DkwkwkDk"
    assert [phase.stage for phase in phases].count(None) == 2
    assert len(schedule.phases) == 4


def test_destinations_are_chosen_with_every_plan_by_default() -> None:
    recipe = make(
        stages=[stage("all", 1.0, {"name": "toma"})], plan={"every_steps": 5}, ratio=cosine(0.6, 0.6)
    )
    schedule = build_schedule(recipe, steps=20, grid=(64, 64))
    assert all(phase.fresh_destinations for phase in schedule.phases)
