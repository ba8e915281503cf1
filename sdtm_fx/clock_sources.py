"""Where a clock gets the step from without a scheduler: the user's own loop, or the timestep argument."""

from __future__ import annotations

import torch
from torch import Tensor

from sdtm_fx.errors import ClockError

NOMINAL_STEPS = 28
"""Number of steps that a `TimestepEstimate` assumes: the default of the SD3 and FLUX.1-dev pipelines."""

_ROUNDING = 1e-4  # a timestep computed in half precision may fall a little short of its step


class ManualSteps:
    """The step of a denoising loop that the user writes. Made by `Clock.manual`.

    Setting `step` to a lower value than the current one starts a new generation.
    """

    def __init__(self, steps: int) -> None:
        """Start at step 0.

        Args:
            steps: Number of denoising steps of the loop, at least 1.

        Raises:
            ClockError: `steps` is not a positive integer.
        """
        if not isinstance(steps, int) or isinstance(steps, bool) or steps < 1:
            raise ClockError(f"number of steps: found {steps!r}; accepted: an integer of at least 1")
        self._count = steps
        self._step = 0
        self._evaluation = 0
        self._generation = 0

    @property
    def step(self) -> int:
        """Index of the current denoising step; equals `count` after the last `advance`."""
        return self._step

    @step.setter
    def step(self, value: int) -> None:
        if not isinstance(value, int) or isinstance(value, bool) or not 0 <= value < self._count:
            raise ClockError(f"step: found {value!r}; accepted: an integer from 0 to {self._count - 1}")
        if value < self._step:
            self._generation += 1
            self._evaluation = 0
        elif value > self._step:
            self._evaluation += 1
        self._step = value

    def advance(self) -> None:
        """End the current denoising step.

        Raises:
            ClockError: All steps have ended already.
        """
        if self._step >= self._count:
            raise ClockError(
                f"advance() after the last of {self._count} steps; set `step = 0` to start another generation"
            )
        self._step += 1
        self._evaluation += 1

    @property
    def count(self) -> int:
        """Number of denoising steps."""
        return self._count

    @property
    def evaluation(self) -> int:
        """Number of times the step moved on since the generation started."""
        return self._evaluation

    @property
    def generation(self) -> int:
        """Number of times that the step was set back."""
        return self._generation


class TimestepEstimate:
    """The step read off the timestep argument: approximate, because nobody says how many steps there are.

    Time runs down from the top of its range, which is 1 when the first value of a generation is at most 1
    (FLUX is called with timestep / 1000) and 1000 otherwise. The step is the fraction of the range that is
    gone, in `NOMINAL_STEPS` steps. A shifted schedule spends more of its steps early, which this cannot see.
    A value above the previous one starts a new generation. Models whose time runs up need an exact clock.
    """

    def __init__(self) -> None:
        """Start before the first timestep."""
        self._last: float | None = None
        self._range = 1000.0
        self._evaluation = 0
        self._generation = 0

    def update(self, timestep: Tensor | float) -> None:
        """Move to `timestep`. Reading a tensor on a device waits for that device.

        Args:
            timestep: The model's timestep argument: a number or a tensor; its largest value counts.

        Raises:
            ClockError: The tensor holds no value (meta device, no elements).
        """
        value = _largest(timestep)
        if self._last is None or value > self._last:
            self._generation += 1
            self._evaluation = 0
            self._range = 1.0 if value <= 1.0 else 1000.0
        elif value < self._last:
            self._evaluation += 1
        self._last = value

    @property
    def step(self) -> int:
        """Nominal index of the denoising step."""
        if self._last is None:
            raise ClockError("no timestep was seen yet")
        gone = 1.0 - self._last / self._range
        return min(max(int(gone * NOMINAL_STEPS + _ROUNDING), 0), NOMINAL_STEPS - 1)

    @property
    def count(self) -> int:
        """`NOMINAL_STEPS`."""
        return NOMINAL_STEPS

    @property
    def evaluation(self) -> int:
        """Number of times the timestep went down since the generation started."""
        return self._evaluation

    @property
    def generation(self) -> int:
        """Number of times the timestep went up, the first value included."""
        return self._generation


def _largest(timestep: Tensor | float) -> float:
    if not isinstance(timestep, torch.Tensor):
        return float(timestep)
    if timestep.is_meta or timestep.numel() == 0:
        raise ClockError(
            f"timestep: found a tensor without a value (device {timestep.device}, shape "
            f"{tuple(timestep.shape)}); accepted: a number, or a tensor with at least one element"
        )
    return float(timestep.detach().max())
