"""What a schedule says: the distinct phases of a generation, and which one every step runs."""

from __future__ import annotations

from dataclasses import dataclass

from sdtm_fx.errors import ScheduleError


@dataclass(frozen=True)
class Phase:
    """One static way to run the model: one graph.

    Attributes:
        stage: Index of the stage in the recipe; None is dense.
        remove: Number of tokens removed at every site of the stage; all of them when the stage skips.
        refresh: Dense, and stores the features that later steps reuse.
        fresh_plan: The plan is made in this step; False takes the plan kept from an earlier one.
        fresh_destinations: The destinations of a fresh plan are chosen in this step; False keeps those of an
            earlier one and only weighs the tokens anew.
    """

    stage: int | None
    remove: int
    refresh: bool
    fresh_plan: bool = True
    fresh_destinations: bool = True


@dataclass(frozen=True)
class Schedule:
    """The phases of one generation.

    Attributes:
        steps: Number of denoising steps.
        tokens: Number of image tokens N.
        phases: Distinct phases that can occur, the dense one first when there is one.
        phase_of_step: Index into `phases`, per step. Dense where the count is measured (`choices`).
        ratios: Continuous ratio of the curve, per step; 0 where the step is kept dense, skips or is measured.
        choices: Indices of the phases that `phase_for_count` chooses from, per step, by ascending count;
            empty where the phase is fixed.
        round_to_used: Kept counts are multiples of this: `plan.round_to`, or less where the tokens or the
            cost of the curve do not allow it.
        cost_error: Relative error of the cost of the quantised steps against the continuous curve, signed.
    """

    steps: int
    tokens: int
    phases: tuple[Phase, ...]
    phase_of_step: tuple[int, ...]
    ratios: tuple[float, ...]
    choices: tuple[tuple[int, ...], ...]
    round_to_used: int
    cost_error: float = 0.0

    def phase(self, step: int) -> Phase:
        """Return the phase of a step.

        Raises:
            ScheduleError: `step` is out of range.
        """
        if not 0 <= step < self.steps:
            raise ScheduleError(f"step: found {step}; accepted: 0 to {self.steps - 1}")
        return self.phases[self.phase_of_step[step]]

    def phase_for_count(self, step: int, count: int | None) -> Phase:
        """Return the phase of a step whose count is measured: the largest level not above the count.

        Below the smallest level this is the dense phase, or the smallest level where the recipe sets a least
        ratio. Steps with a fixed phase ignore the count.

        Args:
            step: Denoising step.
            count: Tokens that score above the threshold, the least over the batch; None: not measured yet,
                which is dense.

        Raises:
            ScheduleError: `step` is out of range.
        """
        fixed = self.phase(step)
        if count is None or not self.choices[step]:
            return fixed
        options = [self.phases[index] for index in self.choices[step]]
        fitting = [phase for phase in options if phase.remove <= count]
        return fitting[-1] if fitting else options[0]

    def last_refresh(self, step: int) -> int | None:
        """Return the latest step, up to `step` itself, that is sure to refresh features; None without one.

        Steps whose count is measured may turn out dense and refresh too; they are not counted.

        Raises:
            ScheduleError: `step` is out of range.
        """
        self.phase(step)
        sure = (t for t in range(step, -1, -1) if self.phase(t).refresh and not self.choices[t])
        return next(sure, None)
