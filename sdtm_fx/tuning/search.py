"""The search: from the best starting points uphill, one change at a time, until the trials are used up."""

from __future__ import annotations

import random
import statistics
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field

from sdtm_fx.recipe.schema import Recipe
from sdtm_fx.tuning.moves import afforded, changed
from sdtm_fx.tuning.pricing import Pricing
from sdtm_fx.tuning.setting import Setting
from sdtm_fx.tuning.starts import Start, family_of

Judging = Callable[[Sequence[Recipe]], Sequence[Sequence[float]]]
"""Quality of several recipes on the images of the search, image by image."""


@dataclass(frozen=True)
class Trial:
    """A setting that was tried.

    Attributes:
        setting: The setting.
        family: What kind of acceleration it is.
        speedup: Dense over total MACs.
        quality: On the images of the search, one each.
    """

    setting: Setting
    family: str
    speedup: float
    quality: tuple[float, ...]

    @property
    def mean(self) -> float:
        """Mean quality."""
        return statistics.fmean(self.quality)


@dataclass
class Search:
    """A search in progress.

    Attributes:
        pricing: The budget and what settings cost.
        judge: Draws and measures.
        most: Trials that may be made.
        together: Trials that are made at a time.
        groups: Blocks that are computed whole or not together.
        seed: Of the order in which neighbours are tried.
        on_trial: Called after every trial.
        out_of_time: Says whether to stop early.
        trials: All trials, in order.
    """

    pricing: Pricing
    judge: Judging
    most: int
    together: int = 1
    groups: Sequence[tuple[int, ...]] = ()
    seed: int = 0
    on_trial: Callable[[Trial], None] = lambda trial: None
    out_of_time: Callable[[], bool] = lambda: False
    trials: list[Trial] = field(default_factory=list)

    def __post_init__(self) -> None:
        """Nothing has been tried."""
        self._seen: set[Setting] = set()

    def run(self, starts: Sequence[Start], climbs: int) -> None:
        """Try all starting points, then climb from the best ones, each in turn, until none has anything left.

        Args:
            starts: Where to start.
            climbs: From how many of them.
        """
        self._try([start.setting for start in starts])
        tops = self.best(climbs)
        paths = [_Climb(trial, self._around(trial, number)) for number, trial in enumerate(tops)]
        while paths and not self._over():
            for path in list(paths):
                settings = path.next(self.together, self._seen)
                if not settings:
                    paths.remove(path)
                    continue
                top = max(self._try(settings), key=lambda trial: trial.mean, default=path.top)
                if top.mean > path.top.mean:
                    path.top, path.ahead = top, self._around(top, len(self.trials))

    def best(self, count: int, family: str | None = None) -> list[Trial]:
        """The best trials, of a family or of all; of equal ones the first."""
        of = [trial for trial in self.trials if family in (None, trial.family)]
        return sorted(of, key=lambda trial: -trial.mean)[:count]

    def _over(self) -> bool:
        return len(self.trials) >= self.most or self.out_of_time()

    def _try(self, settings: Sequence[Setting]) -> list[Trial]:
        made: list[Trial] = []
        for first in range(0, len(settings), self.together):
            if self._over():
                break
            group = [*settings[first : first + self.together]][: self.most - len(self.trials)]
            self._seen.update(group)
            qualities = self.judge([self.pricing.recipe(setting) for setting in group])
            for setting, quality in zip(group, qualities, strict=True):
                trial = Trial(setting, family_of(setting), self.pricing.price(setting), tuple(quality))
                self.trials.append(trial)
                made.append(trial)
                self.on_trial(trial)
        return made

    def _around(self, trial: Trial, salt: int) -> Iterator[Setting]:
        """What lies beside a trial, in an order of chance that the seed decides; priced as it is asked for."""
        beside = changed(trial.setting, self.pricing, self.groups)
        random.Random(self.seed * 1_000_003 + salt).shuffle(beside)
        for setting in beside:
            yield from afforded(setting, self.pricing)


@dataclass
class _Climb:
    """One way up: where it is, and what around it has not been tried."""

    top: Trial
    ahead: Iterator[Setting]

    def next(self, count: int, seen: set[Setting]) -> list[Setting]:
        """So many neighbours that nobody has tried."""
        found: list[Setting] = []
        for setting in self.ahead:
            if setting not in seen:
                found.append(setting)
            if len(found) == count:
                break
        return found
