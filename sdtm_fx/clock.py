"""The clock: which denoising step it is, of how many. Never a count of forward calls.

In order of precedence: the user's loop (`Clock.manual`), the scheduler of a followed pipeline while it runs,
and the timestep argument as a documented approximation.
"""

from __future__ import annotations

import logging
import warnings
import weakref
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from sdtm_fx.clock_sources import NOMINAL_STEPS, ManualSteps, TimestepEstimate
from sdtm_fx.errors import ClockError
from sdtm_fx.scheduler_tap import SchedulerTap

logger = logging.getLogger(__name__)

_HOW_TO_BE_EXACT = (
    "follow a pipeline (rewrite the pipeline rather than its model), "
    "or write `with sdtm_fx.steps(model, number_of_steps) as clock:`"
)


@dataclass(frozen=True)
class Moment:
    """One point in time of a generation.

    Attributes:
        step: Index of the denoising step, 0 to `count - 1`. All model calls of one solver step share it
            (sequential CFG, skip-layer guidance, the second evaluation of Heun).
        count: Number of denoising steps of this generation.
        evaluation: Scheduler steps finished since the generation started; a second-order solver has two in
            each denoising step.
        generation: Counts generations of this clock: state that lasts over steps is cleared when it changes.
    """

    step: int
    count: int
    evaluation: int
    generation: int


class Clock:
    """Knows the current denoising step of one model.

    A deep copy that takes the followed pipeline along follows the pipeline's copy. Every other copy, and what
    comes out of a pickle, is a fresh clock that follows nothing.
    """

    def __init__(self) -> None:
        """Start without pipeline or loop."""
        # Weak: the pipeline holds the model, which holds the clock.
        self._pipeline: weakref.ref[Any] | None = None
        self._tap: SchedulerTap | None = None
        self._manual: ManualSteps | None = None
        self._estimate = TimestepEstimate()
        self._warned = False
        self._generation = 0
        self._seen: tuple[object, int] | None = None

    def follow(self, pipeline: Any) -> None:
        """Take the step from the scheduler of `pipeline`, in place of the one followed before.

        The pipeline is held weakly. When its `scheduler` is replaced later, the clock moves to the new one.

        Args:
            pipeline: Any object with a `scheduler` attribute: a diffusers pipeline.

        Raises:
            ClockError: There is no scheduler, or it lacks `set_timesteps` or `step`.
        """
        tap = SchedulerTap.attach(_scheduler_of(pipeline))
        self.unfollow()
        self._pipeline, self._tap = weakref.ref(pipeline), tap

    def unfollow(self) -> None:
        """Follow no pipeline any more; its scheduler is as it was before `follow`."""
        self._pipeline = None
        if self._tap is not None:
            self._tap.detach()
            self._tap = None

    @property
    def pipeline(self) -> Any | None:
        """The pipeline that is followed, None without one."""
        return self._pipeline() if self._pipeline is not None else None

    @contextmanager
    def manual(self, steps: int) -> Iterator[ManualSteps]:
        """Let the caller say which step it is; leaving restores what was followed before.

        Args:
            steps: Number of denoising steps of the caller's loop.

        Yields:
            An object with `advance()` and a settable `step`.

        Raises:
            ClockError: `steps` is not a positive integer, or the clock is already in such a block.
        """
        if self._manual is not None:
            raise ClockError(
                f"the clock is already set by hand ({self._manual.count} steps); such blocks do not nest"
            )
        self._manual = ManualSteps(steps)
        try:
            yield self._manual
        finally:
            self._manual = None

    def moment(self, timestep: Tensor | float | None = None) -> Moment:
        """Say which step it is now.

        Args:
            timestep: The timestep argument of the model call, if there is one. It is read only when nothing
                better is known, and then makes the host wait for a tensor on a device.

        Raises:
            ClockError: The step is not known, or the steps set by hand are used up.
        """
        source = self._source(timestep)
        if source.step >= source.count:
            raise ClockError(
                f"all {source.count} steps of this generation have ended; set `step = 0` to start again"
            )
        if self._seen is None or self._seen[0] is not source or self._seen[1] != source.generation:
            self._generation += 1
            self._seen = (source, source.generation)
        return Moment(source.step, source.count, source.evaluation, self._generation)

    def _source(self, timestep: Tensor | float | None) -> ManualSteps | SchedulerTap | TimestepEstimate:
        if self._manual is not None:
            return self._manual
        tap = self._current_tap()
        if tap is not None and tap.running:
            return tap
        if timestep is None:
            found = "the model call has no timestep"
            if tap is not None:
                found = f"{type(tap.scheduler).__name__} is not in a generation, and {found}"
            raise ClockError(
                f"the denoising step is not known: {found}. To make it known, {_HOW_TO_BE_EXACT}."
            )
        self._warn()
        self._estimate.update(timestep)
        return self._estimate

    def _current_tap(self) -> SchedulerTap | None:
        pipeline = self._pipeline() if self._pipeline is not None else None
        if pipeline is None:
            return self._tap
        scheduler = _scheduler_of(pipeline)
        if self._tap is None or self._tap.scheduler is not scheduler:
            tap = SchedulerTap.attach(scheduler)
            if self._tap is not None:
                logger.info(
                    "the scheduler of %s was replaced; following the new one", type(pipeline).__name__
                )
                self._tap.detach()
            self._tap = tap
        return self._tap

    def _warn(self) -> None:
        if self._warned:
            return
        self._warned = True
        warnings.warn(
            f"the denoising step is estimated from the timestep, as one of {NOMINAL_STEPS}: stages and dense "
            f"steps may fall on other steps than the recipe says. To be exact, {_HOW_TO_BE_EXACT}.",
            UserWarning,
            stacklevel=4,
        )

    def __deepcopy__(self, memo: dict[int, Any]) -> Clock:
        """Copy what is followed only when the pipeline is being copied too."""
        clock = Clock()
        memo[id(self)] = clock
        pipeline = self._pipeline() if self._pipeline is not None else None
        twin = memo.get(id(pipeline)) if pipeline is not None else None
        if twin is not None:
            clock._pipeline = weakref.ref(twin)  # its scheduler is attached at the first moment
        return clock

    def __reduce__(self) -> tuple[type[Clock], tuple[()]]:
        """Pickle as a fresh clock."""
        return Clock, ()


def _scheduler_of(pipeline: Any) -> Any:
    scheduler = getattr(pipeline, "scheduler", None)
    if scheduler is None:
        raise ClockError(f"cannot follow {type(pipeline).__name__}: it has no scheduler")
    return scheduler
