"""The clock without a pipeline: the user's loop, the timestep, errors and precedence."""

from __future__ import annotations

import copy
import pickle
import warnings
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from diffusers import FlowMatchEulerDiscreteScheduler

from sdtm_fx.clock import Clock
from sdtm_fx.clock_sources import NOMINAL_STEPS
from sdtm_fx.errors import ClockError


class Pipe:
    def __init__(self) -> None:
        self.scheduler: Any = FlowMatchEulerDiscreteScheduler()


def quiet(clock: Clock) -> Clock:
    with pytest.warns(UserWarning, match="estimated from the timestep"):
        clock.moment(torch.tensor([0.0]))  # whatever comes next rises: a new generation
    return clock


def test_manual_steps_advance() -> None:
    clock = Clock()
    with clock.manual(3) as loop:
        seen = []
        for _ in range(3):
            seen += [clock.moment(), clock.moment()]
            loop.advance()
    assert [(m.step, m.count, m.evaluation) for m in seen] == [(t, 3, t) for t in range(3) for _ in range(2)]
    assert len({m.generation for m in seen}) == 1


def test_manual_step_is_settable_and_going_back_is_a_new_generation() -> None:
    clock = Clock()
    with clock.manual(4) as loop:
        first = clock.moment()
        loop.step = 2
        second = clock.moment()
        loop.step = 2
        third = clock.moment()
        loop.step = 0
        fourth = clock.moment()
    assert [m.step for m in (first, second, third, fourth)] == [0, 2, 2, 0]
    assert second == third
    assert first.generation == second.generation == fourth.generation - 1
    assert (second.evaluation, fourth.evaluation) == (1, 0)


@pytest.mark.parametrize("value", [-1, 4, 1.0, True, None])
def test_manual_step_is_range_checked(value: Any) -> None:
    with (
        Clock().manual(4) as loop,
        pytest.raises(ClockError, match=r"step: found .*; accepted: an integer from 0 to 3"),
    ):
        loop.step = value


@pytest.mark.parametrize("steps", [0, -2, 2.5, True])
def test_manual_count_is_checked(steps: Any) -> None:
    with (
        pytest.raises(ClockError, match=r"number of steps: found .*; accepted: an integer of at least 1"),
        Clock().manual(steps),
    ):
        pass


def test_manual_steps_run_out() -> None:
    clock = Clock()
    with clock.manual(1) as loop:
        loop.advance()
        with pytest.raises(ClockError, match="all 1 steps of this generation have ended"):
            clock.moment(torch.tensor(5.0))
        with pytest.raises(ClockError, match=r"advance\(\) after the last of 1 steps"):
            loop.advance()
        loop.step = 0
        assert clock.moment().step == 0


def test_manual_does_not_nest_and_restores() -> None:
    pipe, clock = Pipe(), Clock()
    clock.follow(pipe)
    pipe.scheduler.set_timesteps(9)
    before = clock.moment()
    with clock.manual(3):
        assert clock.moment().count == 3
        with pytest.raises(ClockError, match=r"already set by hand \(3 steps\)"), clock.manual(2):
            pass
        assert clock.moment().count == 3
    after = clock.moment()
    assert (after.step, after.count) == (before.step, before.count) == (0, 9)


def test_manual_restores_after_an_exception() -> None:
    clock = Clock()
    with pytest.raises(KeyError), clock.manual(3):
        raise KeyError
    with pytest.raises(ClockError, match="the model call has no timestep"):
        clock.moment()
    with clock.manual(2):
        assert clock.moment().count == 2


def test_unknown_without_timestep() -> None:
    clock = Clock()
    with pytest.raises(
        ClockError, match=r"step is not known: the model call has no timestep.*sdtm_fx\.steps"
    ):
        clock.moment()
    pipe = Pipe()
    clock.follow(pipe)
    with pytest.raises(ClockError, match="FlowMatchEulerDiscreteScheduler is not in a generation"):
        clock.moment()


def test_estimate_warns_once_and_says_how_to_be_exact() -> None:
    clock = Clock()
    message = r"one of 28.*To be exact, follow a pipeline.*sdtm_fx\.steps"
    with pytest.warns(UserWarning, match=message) as caught:
        clock.moment(torch.tensor([1000.0]))
    assert [warning.filename for warning in caught] == [__file__]  # blames the caller of `moment`
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        clock.moment(torch.tensor([800.0]))


@pytest.mark.parametrize("scale", [1000.0, 1.0])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64])
def test_estimate_is_exact_for_an_unshifted_schedule_of_the_nominal_length(
    scale: float, dtype: torch.dtype
) -> None:
    clock = quiet(Clock())
    times = [scale * (1 - t / NOMINAL_STEPS) for t in range(NOMINAL_STEPS)]
    moments = [clock.moment(torch.tensor([time, time]).to(dtype)) for time in times]
    exact = [(t, NOMINAL_STEPS, t) for t in range(NOMINAL_STEPS)]
    found = [(m.step, m.count, m.evaluation) for m in moments]
    if dtype is torch.bfloat16:  # eight bits: a step early or late
        assert max(abs(a[0] - b[0]) for a, b in zip(found, exact, strict=True)) <= 1
    else:
        assert found == exact
    assert len({m.generation for m in moments}) == 1


def test_estimate_keeps_its_range_to_the_end_and_starts_again() -> None:
    clock = quiet(Clock())
    clock.moment(900.0)
    low = clock.moment(0.5)  # still of 1000
    assert low.step == NOMINAL_STEPS - 1
    again = clock.moment(torch.tensor(1000))
    assert (again.step, again.evaluation, again.generation) == (0, 0, low.generation + 1)
    same = clock.moment(torch.tensor(1000))
    assert same == again
    clock.moment(0.4)
    other = clock.moment(0.8)  # a rise: a new generation, this time of [0, 1]
    assert other.step == int(0.2 * NOMINAL_STEPS)


@pytest.mark.parametrize("value", [torch.empty(2, device="meta"), torch.empty(0)])
def test_a_timestep_without_value(value: torch.Tensor) -> None:
    clock = quiet(Clock())
    with pytest.raises(ClockError, match=r"timestep: found a tensor without a value"):
        clock.moment(value)


def test_the_scheduler_has_precedence_while_it_runs() -> None:
    pipe, clock = Pipe(), Clock()
    clock.follow(pipe)
    quiet(clock)
    pipe.scheduler.set_timesteps(2)
    first = clock.moment(torch.tensor(500.0))
    assert (first.step, first.count) == (0, 2)
    for timestep in pipe.scheduler.timesteps:
        pipe.scheduler.step(torch.ones(1), timestep, torch.ones(1))
    after = clock.moment(torch.tensor(500.0))
    assert after.count == NOMINAL_STEPS
    assert after.generation == first.generation + 1


def test_following_another_pipeline_lets_go_of_the_first() -> None:
    first, second, clock = Pipe(), Pipe(), Clock()
    clock.follow(first)
    clock.follow(second)
    assert "step" not in vars(first.scheduler)
    assert "step" in vars(second.scheduler)
    clock.unfollow()
    clock.unfollow()
    assert "step" not in vars(second.scheduler)


def test_following_the_same_pipeline_again_changes_nothing() -> None:
    pipe, clock = Pipe(), Clock()
    clock.follow(pipe)
    pipe.scheduler.set_timesteps(3)
    before = clock.moment()
    clock.follow(pipe)
    assert clock.moment() == before
    clock.unfollow()
    assert "step" not in vars(pipe.scheduler)


def test_what_cannot_be_followed() -> None:
    clock = Clock()
    with pytest.raises(ClockError, match="cannot follow SimpleNamespace: it has no scheduler"):
        clock.follow(SimpleNamespace())
    pipe = Pipe()
    clock.follow(pipe)
    with pytest.raises(ClockError, match="cannot follow object"):
        clock.follow(SimpleNamespace(scheduler=object()))
    pipe.scheduler.set_timesteps(2)
    assert clock.moment().count == 2  # a failed follow leaves the old one in place
    pipe.scheduler = None
    with pytest.raises(ClockError, match="cannot follow Pipe: it has no scheduler"):
        clock.moment()


@pytest.mark.parametrize("duplicate", [copy.copy, copy.deepcopy, lambda c: pickle.loads(pickle.dumps(c))])
def test_copies_follow_nothing(duplicate: Any) -> None:
    pipe, clock = Pipe(), Clock()
    clock.follow(pipe)
    pipe.scheduler.set_timesteps(2)
    twin = duplicate(clock)
    with pytest.raises(ClockError, match="not known"):
        twin.moment()
    assert clock.moment().count == 2
