"""The search: starting points, what each part of the best one gives, then uphill, one change at a time."""

from __future__ import annotations

import random
import statistics
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field

from sdtm_fx.recipe.schema import Recipe
from sdtm_fx.tuning.moves import afforded, changed
from sdtm_fx.tuning.pricing import Pricing
from sdtm_fx.tuning.sensitivity import Sensitivity, measure_sensitivities, parts_of, relieved
from sdtm_fx.tuning.setting import Setting
from sdtm_fx.tuning.starts import Start, family_of

Judging = Callable[[Sequence[Recipe]], Sequence[Sequence[float]]]
"""Quality of several recipes on the images of the search, image by image."""


SIFTED = 4
"""One starting point in so many is tried on all images of the search, if they are glanced at first."""

OF_EACH_FAMILY = 3
"""Starting points of a family that are tried, however they look."""


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
        glance: The same on fewer images, which starting points are sifted by; None where there are no fewer.
        most: Trials that may be made; a sensitivity takes as long as one, and counts as one.
        together: Trials that are made at a time.
        groups: Blocks that are computed whole or not together.
        seed: Of the order in which neighbours are tried.
        on_glance: Called after every starting point that was glanced at, with their number.
        on_trial: Called after every trial.
        on_sensitivity: Called after every part whose sensitivity was measured.
        out_of_time: Says whether to stop early.
        trials: All trials, in order.
        sensitivities: Of the parts of the best starting point, the highest first; none where trials are few.
    """

    pricing: Pricing
    judge: Judging
    most: int
    together: int = 1
    groups: Sequence[tuple[int, ...]] = ()
    seed: int = 0
    glance: Judging | None = None
    on_glance: Callable[[Start, int], None] = lambda start, of: None
    on_trial: Callable[[Trial], None] = lambda trial: None
    on_sensitivity: Callable[[Sensitivity], None] = lambda sensitivity: None
    out_of_time: Callable[[], bool] = lambda: False
    trials: list[Trial] = field(default_factory=list)
    sensitivities: list[Sensitivity] = field(default_factory=list)

    def __post_init__(self) -> None:
        """Nothing has been tried."""
        self._seen: set[tuple[object, ...]] = set()

    def run(self, starts: Sequence[Start], climbs: int) -> None:
        """Try what looks best of the starting points, then the best of them with sensitive parts whole; then climb.

        Args:
            starts: Where to start.
            climbs: From how many of them.
        """
        self._try([start.setting for start in self._sifted(starts)])
        self._relieve()
        tops = self.best(climbs)
        paths = [_Climb(trial, self._around(trial, number)) for number, trial in enumerate(tops)]
        while paths and not self._over():
            for path in list(paths):
                settings = path.next(self.together, self._unseen)
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

    def _sifted(self, starts: Sequence[Start]) -> list[Start]:
        """The best part of the starting points, the best few of every family, and what recipes say, in their order."""
        if self.glance is None:
            return [*starts]
        marks: dict[Setting, float] = {}
        for first in range(0, len(starts), self.together):
            if self.out_of_time():
                break
            group = starts[first : first + self.together]
            seen = self.glance([self.pricing.recipe(start.setting) for start in group])
            for start, quality in zip(group, seen, strict=True):
                marks[start.setting] = statistics.fmean(quality)
                self.on_glance(start, len(starts))
        ranked = sorted((s for s in starts if s.setting in marks), key=lambda start: -marks[start.setting])
        kept = {start.setting for start in ranked[: -(-len(starts) // SIFTED)]}
        for family in {start.family for start in ranked}:
            kept |= {s.setting for s in [s for s in ranked if s.family == family][:OF_EACH_FAMILY]}
        return [start for start in starts if start.written or start.setting in kept]

    def _relieve(self) -> None:
        """Measure what every part of the best trial gives, if that leaves as many trials again for using it."""
        if self._over():
            return
        top = self.best(1)[0]
        parts = parts_of(self.pricing.bases[top.setting.base], self.groups)
        if self._left < 2 * len(parts):
            return
        self.sensitivities = measure_sensitivities(top.setting, top.quality, self.pricing, parts, self.judge)
        for one in self.sensitivities:
            self.on_sensitivity(one)
        ahead = relieved(top.setting, self.pricing, self.sensitivities)
        self._try([*{self.pricing.effect(one): one for one in ahead if self._unseen(one)}.values()])

    def _unseen(self, setting: Setting) -> bool:
        """Whether nothing that does the same was tried."""
        return self.pricing.effect(setting) not in self._seen

    @property
    def _left(self) -> int:
        return self.most - len(self.trials) - len(self.sensitivities)

    def _over(self) -> bool:
        return self._left <= 0 or self.out_of_time()

    def _try(self, settings: Sequence[Setting]) -> list[Trial]:
        made: list[Trial] = []
        for first in range(0, len(settings), self.together):
            if self._over():
                break
            group = [*settings[first : first + self.together]][: self._left]
            self._seen.update(self.pricing.effect(setting) for setting in group)
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

    def next(self, count: int, unseen: Callable[[Setting], bool]) -> list[Setting]:
        """So many neighbours that nobody has tried."""
        found: list[Setting] = []
        for setting in self.ahead:
            if unseen(setting):
                found.append(setting)
            if len(found) == count:
                break
        return found
