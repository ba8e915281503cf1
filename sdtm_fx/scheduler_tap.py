"""Follows a diffusers scheduler: counts its calls on the host, exactly, without a sync."""

from __future__ import annotations

import functools
import logging
from collections.abc import Callable
from typing import Any

from sdtm_fx.errors import ClockError

logger = logging.getLogger(__name__)

# Set on both wrappers: a tap is found again even when another tool has wrapped them with functools.wraps.
_MARK = "sdtm_fx_tap"
_WRAPPED = ("set_timesteps", "step")


class SchedulerTap:
    """Counts what one scheduler instance does. One tap per scheduler, shared by everyone who attaches.

    The tap replaces the instance's `set_timesteps` and `step` by wrappers with the same signature
    (`inspect.signature` is what pipelines look at). Copies and pickles of a tapped scheduler are untapped.

    A denoising step is `scheduler.order` calls of `step` (Heun: two model evaluations, one step), so the step
    index is the number of finished calls since `set_timesteps`, divided by the order. A pipeline that starts
    in the middle (image to image) says so with `set_begin_index`, which the tap reads when asked: that call
    comes after `set_timesteps`. Without it the start is known from the scheduler's own index once the
    first step has ended; schedulers that have neither count all their timesteps.

    Pipelines that step copies of their scheduler (one per frame, say) cannot be followed.
    """

    def __init__(self, scheduler: Any) -> None:
        """Use `SchedulerTap.attach`, which shares taps.

        Args:
            scheduler: A diffusers scheduler. In the middle of a run, the tap takes the position over.
        """
        self.scheduler = scheduler
        self.users = 0
        self._generation = 0
        self._calls = 0
        self._previous: dict[str, Any] = {}
        self._wrappers: dict[str, Any] = {}
        self._take_over()

    @classmethod
    def attach(cls, scheduler: Any) -> SchedulerTap:
        """Return the tap of `scheduler`, made on first use. Every `attach` needs one `detach`.

        Args:
            scheduler: A diffusers scheduler.

        Raises:
            ClockError: The object has no `set_timesteps` or no `step` method.
        """
        missing = [name for name in _WRAPPED if not callable(getattr(scheduler, name, None))]
        if missing:
            raise ClockError(
                f"cannot follow {type(scheduler).__name__}: it has no method "
                f"{' and no method '.join(missing)}; a scheduler needs both"
            )
        tap = getattr(vars(scheduler).get("step"), _MARK, None)
        if tap is None:
            tap = cls(scheduler)
        tap.users += 1
        if not tap._wrappers:
            tap._install()
        return tap

    def detach(self) -> None:
        """Give up one use. The last one restores the scheduler: no attribute of the tap is left on it.

        Raises:
            ClockError: There were more calls of `detach` than of `attach`.
        """
        if self.users == 0:
            raise ClockError(
                f"the tap of {type(self.scheduler).__name__} was detached more often than attached"
            )
        self.users -= 1
        if self.users == 0:
            self._remove()

    @property
    def generation(self) -> int:
        """Number of `set_timesteps` calls seen: each starts a new generation."""
        return self._generation

    @property
    def evaluation(self) -> int:
        """Number of finished `step` calls of this generation."""
        return self._calls

    @property
    def step(self) -> int:
        """Index of the denoising step that comes next, or is in progress; equals `count` after the last."""
        return -(-self._calls // self._order()) if self._finished() else self._calls // self._order()

    @property
    def count(self) -> int:
        """Number of denoising steps of this generation: timesteps after the begin index, over the order."""
        return -(-self._evaluations() // self._order())

    @property
    def running(self) -> bool:
        """True between `set_timesteps` and the last `step`."""
        return self._generation > 0 and not self._finished()

    def _order(self) -> int:
        return int(getattr(self.scheduler, "order", 1))

    def _finished(self) -> bool:
        return self._calls >= self._evaluations()

    def _evaluations(self) -> int:
        timesteps = self.scheduler.timesteps
        return len(timesteps) - self._begin() if timesteps is not None else 0

    def _begin(self) -> int:
        begin = getattr(self.scheduler, "begin_index", None)
        if isinstance(begin, int):
            return begin
        position = self._position()
        # Without a begin index the scheduler finds its first index itself, at its first step.
        return position - self._calls if position is not None and self._calls else 0

    def _position(self) -> int | None:
        position = getattr(self.scheduler, "step_index", None)
        return position if isinstance(position, int) else None

    def _take_over(self) -> None:
        if vars(self.scheduler).get("num_inference_steps") is None:
            return
        self._generation = 1
        position = self._position()
        if position is not None:
            begin = getattr(self.scheduler, "begin_index", None)
            self._calls = position - (begin if isinstance(begin, int) else 0)

    def _install(self) -> None:
        scheduler = self.scheduler
        self._wrappers = {
            "set_timesteps": self._counting(scheduler.set_timesteps, self._on_set_timesteps),
            "step": self._counting(scheduler.step, self._on_step),
            "__getstate__": self._untapped_state(),  # copy and pickle look it up on the instance
        }
        self._previous = {name: vars(scheduler)[name] for name in self._wrappers if name in vars(scheduler)}
        for name, wrapper in self._wrappers.items():
            setattr(scheduler, name, wrapper)

    def _remove(self) -> None:
        own = vars(self.scheduler)
        if any(own.get(name) != wrapper for name, wrapper in self._wrappers.items()):
            # Somebody wrapped the wrappers: taking ours out would take theirs out too. Ours only count.
            logger.info("scheduler %s was wrapped again; the tap stays", type(self.scheduler).__name__)
            return
        for name in self._wrappers:
            delattr(self.scheduler, name)
        for name, value in self._previous.items():
            setattr(self.scheduler, name, value)
        self._wrappers, self._previous = {}, {}

    def _counting(self, method: Callable[..., Any], after: Callable[[], None]) -> Callable[..., Any]:
        @functools.wraps(method)
        def wrapper(*args: Any, **kwargs: Any) -> Any:
            result = method(*args, **kwargs)  # a call that raises is not counted
            after()
            return result

        setattr(wrapper, _MARK, self)
        return wrapper

    def _untapped_state(self) -> Callable[[], dict[str, Any]]:
        # A function, not a method: pipelines that deep-copy `scheduler.__dict__` leave functions alone.
        def untapped_state() -> dict[str, Any]:
            state = {
                name: value for name, value in vars(self.scheduler).items() if name not in self._wrappers
            }
            return state | self._previous

        return untapped_state

    def _on_set_timesteps(self) -> None:
        self._generation += 1
        self._calls = 0

    def _on_step(self) -> None:
        self._calls += 1
