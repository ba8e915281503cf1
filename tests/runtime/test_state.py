"""What lives across steps: refreshes, slopes, features, memory."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from sdtm_fx.plan import identity_plan
from sdtm_fx.runtime.feature import Feature
from sdtm_fx.runtime.state import BranchState, RunState

CPU = torch.device("cpu")


def slope(state: BranchState) -> float:
    assert state.slope is not None
    return float(state.slope)


def test_the_last_two_refreshes_are_remembered() -> None:
    state = BranchState()
    assert [state.set_refreshed(step) for step in (0, 3, 6)] == [True, True, True]
    assert state.refreshed == (6, 3)


def test_a_second_evaluation_of_a_step_is_no_refresh_of_its_own() -> None:
    state = BranchState()
    assert state.set_refreshed(4)
    assert not state.set_refreshed(4)
    assert state.refreshed == (4,)


@pytest.mark.parametrize(
    ("refreshes", "step", "expected"),
    [((), 3, 0.0), ((2,), 5, 0.0), ((0, 3), 4, 1 / 3), ((0, 3), 6, 1.0), ((1, 2), 9, 7.0)],
)
def test_the_slope_is_how_far_ahead_the_step_is(
    refreshes: tuple[int, ...], step: int, expected: float
) -> None:
    state = BranchState()
    for refresh in refreshes:
        state.set_refreshed(refresh)
    state.set_slope(step, CPU)
    assert slope(state) == pytest.approx(expected)


def test_the_slope_stays_one_tensor() -> None:
    state = BranchState()
    state.set_slope(1, CPU)
    tensor = state.slope
    state.set_refreshed(0)
    state.set_refreshed(2)
    state.set_slope(3, CPU)
    assert state.slope is tensor  # compiled graphs hold on to it
    assert slope(state) == 0.5


def test_recording_moves_the_newer_value_only_at_another_step() -> None:
    feature = Feature(torch.zeros(2), torch.full((2,), -1.0))
    newer, older = feature.newer, feature.older
    BranchState(features={(0, "ff"): feature}).shift()
    feature.record(torch.ones(2))
    assert (feature.newer.tolist(), feature.older.tolist()) == ([1, 1], [0, 0])  # type: ignore[union-attr]
    feature.record(torch.full((2,), 5.0))
    assert (feature.newer.tolist(), feature.older.tolist()) == ([5, 5], [0, 0])  # type: ignore[union-attr]
    assert feature.newer is newer  # in place
    assert feature.older is older


def test_what_is_recorded_has_no_history() -> None:
    feature = Feature(torch.zeros(2), torch.zeros(2))
    for _ in range(2):
        feature.record(torch.ones(2, requires_grad=True) * 2)
    assert not feature.newer.requires_grad
    assert not feature.older.requires_grad  # type: ignore[union-attr]


def test_order_zero_keeps_one_value() -> None:
    feature = Feature(torch.zeros(2), None)
    BranchState(features={(0, "ff"): feature}).shift()
    feature.record(torch.ones(2))
    assert feature.older is None
    assert feature.newer.tolist() == [1, 1]


@settings(max_examples=30, deadline=None)
@given(st.lists(st.integers(1, 5), min_size=2, max_size=6), st.integers(1, 6))
def test_slope_and_shifts_extrapolate_a_line_exactly(gaps: list[int], ahead: int) -> None:
    state, step = BranchState(), 0
    feature: Feature | None = None
    for gap in gaps:
        value = torch.tensor([2.0 * step + 1.0])
        shift = state.set_refreshed(step)
        if feature is None:
            feature = Feature(value.clone(), value.clone())
        else:
            if shift:
                BranchState(features={(0, "ff"): feature}).shift()
            feature.record(value)
        last, step = step, step + gap
    assert feature is not None
    assert feature.older is not None
    now = last + ahead
    state.set_slope(now, CPU)
    forecast = torch.lerp(feature.newer, feature.older, -state.slope)  # type: ignore[operator]
    assert float(forecast) == pytest.approx(2.0 * now + 1.0, rel=1e-5)


def test_memory_is_counted_by_what_it_is_for() -> None:
    run = RunState()
    for name in ("cond", "uncond"):
        branch = run.branch(name)
        branch.features[0, "ff"] = Feature(torch.zeros(2, 4), torch.zeros(2, 4))
        branch.features[0, "attn"] = Feature(torch.zeros(2, 4), None)
        branch.ages[0] = torch.zeros(2, 4, dtype=torch.int32)
        plan = identity_plan(1, 4, CPU)
        branch.laid_out[0, 2] = {0: plan.with_tensors(t.clone() for t in plan.tensors())}
        branch.plans = branch.laid_out[0, 2]
    # Four tensors a plan; a plan that was laid out and is in use counts once.
    assert run.bytes() == {
        "features": 2 * 3 * 8 * 4,
        "ages": 2 * 8 * 4,
        "importance": 0,
        "plans": 2 * 4 * 4 * 8,
    }


def test_branches_are_apart_and_a_new_generation_clears_them() -> None:
    run = RunState()
    run.branch("cond").ages[0] = torch.zeros(1)
    assert run.branch("cond") is run.branch("cond")
    assert run.branch("uncond").ages == {}
    run.clear()
    assert run.branches == {}
    assert run.bytes() == {"features": 0, "ages": 0, "importance": 0, "plans": 0}
