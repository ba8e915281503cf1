"""The tap: signatures, sharing, exact removal, copies."""

from __future__ import annotations

import copy
import functools
import inspect
import pickle
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import DDIMScheduler, FlowMatchEulerDiscreteScheduler

from sdtm_fx.errors import ClockError
from sdtm_fx.scheduler_tap import SchedulerTap

NAMES = {"step", "set_timesteps", "__getstate__"}


def run(scheduler: Any, calls: int) -> None:
    sample = torch.zeros(1, 2)
    for timestep in scheduler.timesteps[:calls]:
        sample = scheduler.step(torch.ones(1, 2), timestep, sample, return_dict=False)[0]


@pytest.fixture
def scheduler() -> FlowMatchEulerDiscreteScheduler:
    return FlowMatchEulerDiscreteScheduler(shift=3.0)


def test_signatures_stay(scheduler: Any) -> None:
    before = {name: inspect.signature(getattr(scheduler, name)) for name in ("step", "set_timesteps")}
    SchedulerTap.attach(scheduler)
    assert {name: inspect.signature(getattr(scheduler, name)) for name in before} == before
    assert scheduler.step.__doc__ == type(scheduler).step.__doc__


def test_counts_calls(scheduler: Any) -> None:
    tap = SchedulerTap.attach(scheduler)
    assert not tap.running
    scheduler.set_timesteps(5)
    assert (tap.generation, tap.step, tap.count, tap.running) == (1, 0, 5, True)
    run(scheduler, 3)
    assert (tap.step, tap.evaluation, tap.count) == (3, 3, 5)
    scheduler.set_timesteps(7)
    assert (tap.generation, tap.step, tap.count) == (2, 0, 7)
    run(scheduler, 7)
    assert (tap.step, tap.running) == (7, False)


def test_calls_that_raise_are_not_counted(scheduler: Any) -> None:
    tap = SchedulerTap.attach(scheduler)
    scheduler.set_timesteps(5)
    with pytest.raises(ValueError, match="integer indices"):
        scheduler.step(torch.ones(1, 2), 3, torch.ones(1, 2))
    with pytest.raises(ValueError, match="same length"):
        scheduler.set_timesteps(3, sigmas=[1.0, 0.5])
    assert (tap.generation, tap.evaluation) == (1, 0)


def test_one_tap_for_all_and_removed_with_the_last(scheduler: Any) -> None:
    before = dict(vars(scheduler))
    first, second = SchedulerTap.attach(scheduler), SchedulerTap.attach(scheduler)
    assert first is second
    first.detach()
    assert set(vars(scheduler)) >= NAMES
    second.detach()
    assert vars(scheduler).keys() == before.keys()
    assert scheduler.step.__func__ is FlowMatchEulerDiscreteScheduler.step
    with pytest.raises(
        ClockError, match="FlowMatchEulerDiscreteScheduler was detached more often than attached"
    ):
        second.detach()


def test_attaching_again_starts_from_the_scheduler(scheduler: Any) -> None:
    SchedulerTap.attach(scheduler).detach()
    scheduler.set_timesteps(6)
    scheduler.set_begin_index(2)
    run(scheduler, 1)
    tap = SchedulerTap.attach(scheduler)
    assert (tap.step, tap.count) == (1, 4)


def test_begin_index_set_after_set_timesteps_counts(scheduler: Any) -> None:
    tap = SchedulerTap.attach(scheduler)
    scheduler.set_timesteps(10)
    scheduler.set_begin_index(4)
    assert (tap.step, tap.count) == (0, 6)


def test_a_loop_that_starts_late_without_saying_so_is_known_after_its_first_step(scheduler: Any) -> None:
    tap = SchedulerTap.attach(scheduler)
    scheduler.set_timesteps(10)
    sample = torch.zeros(1, 2)
    found = []
    for timestep in scheduler.timesteps[4:]:
        sample = scheduler.step(torch.ones(1, 2), timestep, sample, return_dict=False)[0]
        found.append((tap.step, tap.count))
    assert found == [(t, 6) for t in range(1, 7)]


def test_no_value_of_a_tensor_is_read(scheduler: Any) -> None:
    tap = SchedulerTap.attach(scheduler)
    scheduler.set_timesteps(3, device="meta")  # reading a value of a meta tensor is an error
    scheduler.set_begin_index(1)
    sample = torch.zeros(1, 2, device="meta")
    assert (tap.step, tap.count, tap.running) == (0, 2, True)
    scheduler.step(sample, scheduler.timesteps[1], sample)
    assert (tap.step, tap.count, tap.running) == (1, 2, True)


def test_schedulers_without_step_index() -> None:
    scheduler = DDIMScheduler()
    tap = SchedulerTap.attach(scheduler)
    scheduler.set_timesteps(5)
    run(scheduler, 2)
    assert (tap.step, tap.count) == (2, 5)


@pytest.mark.parametrize(
    "duplicate",
    [copy.copy, copy.deepcopy, lambda s: pickle.loads(pickle.dumps(s))],
    ids=["copy", "deep", "pickle"],
)
@pytest.mark.parametrize("attached", [1, 2])
def test_copies_are_untapped(scheduler: Any, duplicate: Any, attached: int) -> None:
    taps = [SchedulerTap.attach(scheduler) for _ in range(attached)]
    scheduler.set_timesteps(4)
    run(scheduler, 1)
    twin = duplicate(scheduler)
    assert not NAMES & set(vars(twin))
    twin.set_timesteps(9)
    run(twin, 3)
    assert (taps[0].step, taps[0].count) == (1, 4)
    run(scheduler, 0)
    assert len(scheduler.timesteps) == 4


def test_config_round_trips(scheduler: Any, tmp_path: Path) -> None:
    plain = FlowMatchEulerDiscreteScheduler(shift=3.0)
    SchedulerTap.attach(scheduler)
    other = FlowMatchEulerDiscreteScheduler.from_config(scheduler.config)
    assert not NAMES & set(vars(other))
    for name, saved in (("plain", plain), ("tapped", scheduler)):
        saved.save_pretrained(tmp_path / name)
    file = "scheduler_config.json"
    assert (tmp_path / "tapped" / file).read_text() == (tmp_path / "plain" / file).read_text()


def test_a_scheduler_state_that_is_swapped_in_and_out_keeps_its_tap(scheduler: Any) -> None:
    tap = SchedulerTap.attach(scheduler)
    scheduler.set_timesteps(4)
    state = copy.deepcopy(scheduler.__dict__)
    scheduler.__dict__.update(state)
    run(scheduler, 1)
    assert tap.evaluation == 1


def test_a_wrapper_that_was_there_before_is_put_back(scheduler: Any) -> None:
    calls = []
    method = scheduler.step

    @functools.wraps(method)
    def earlier(*args: Any, **kwargs: Any) -> Any:
        calls.append(1)
        return method(*args, **kwargs)

    scheduler.step = earlier
    tap = SchedulerTap.attach(scheduler)
    scheduler.set_timesteps(3)
    run(scheduler, 2)
    assert (tap.step, len(calls)) == (2, 2)
    tap.detach()
    assert scheduler.step is earlier
    assert "set_timesteps" not in vars(scheduler)


def test_a_wrapper_that_came_later_survives(scheduler: Any) -> None:
    tap = SchedulerTap.attach(scheduler)
    inner = scheduler.step

    @functools.wraps(inner)
    def later(*args: Any, **kwargs: Any) -> Any:
        return inner(*args, **kwargs)

    scheduler.step = later
    tap.detach()
    assert scheduler.step is later
    again = SchedulerTap.attach(scheduler)
    assert again is tap
    scheduler.set_timesteps(3)
    run(scheduler, 2)
    assert (again.step, again.count) == (2, 3)


def test_not_a_scheduler() -> None:
    with pytest.raises(
        ClockError, match="cannot follow object: it has no method set_timesteps and no method step"
    ):
        SchedulerTap.attach(object())
