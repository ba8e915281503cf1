"""Where a search starts: caches, merging with forecasts, plain merging, and mixes of them, all at the budget."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from dataclasses import dataclass, replace

from sdtm_fx.tuning.patterns import dense_patterns
from sdtm_fx.tuning.pricing import Pricing
from sdtm_fx.tuning.setting import Setting, as_written, setting_of

_LAST = (1.0, 0.5, 0.0)  # what a starting point leaves of its ratio in the last step
_PROBE = 0.5  # of what the method can remove; fractions are then fitted to the budget


@dataclass(frozen=True)
class Start:
    """A setting to start from.

    Attributes:
        family: What kind of acceleration it is: "caching", "merging" or "mixed".
        setting: The setting, at the budget.
        written: Whether it is what one of the searched recipes says itself; such a one is never passed over.
    """

    family: str
    setting: Setting
    written: bool = False


def family_of(setting: Setting) -> str:
    """What kind of acceleration a setting is: "caching" computes no merged token, "merging" forecasts no stage."""
    if setting.caches:
        return "caching"
    return "mixed" if any(fraction == 1 for fraction in setting.removed) else "merging"


def starting_points(pricing: Pricing) -> tuple[Start, ...]:
    """Settings of every family that meet the budget, first what the recipes say themselves; no two do the same.

    Args:
        pricing: The budget and what settings cost.
    """
    bases = [
        setting_of(recipe, pricing.size.steps, removed=_PROBE * min(pricing.reach(number)), base=number)
        for number, recipe in enumerate(pricing.bases)
    ]
    merging = [base for base in bases if pricing.merges(base.base)]
    cached: dict[tuple[object, ...], Setting] = {}  # of equal sites and spans, caches are equal too
    for base in bases:
        recipe = pricing.bases[base.base]
        if pricing.may_forecast(base.base):
            cached.setdefault((recipe.sites, recipe.spans), base)
    kinds = [
        *(_caches(base, pricing) for base in cached.values()),
        *(_merges(base, pricing) for base in merging),
        *(_mixes(base, pricing) for base in merging if pricing.may_forecast(base.base)),
    ]
    written = [as_written(recipe, pricing.size.steps, base) for base, recipe in enumerate(pricing.bases)]
    found: dict[tuple[object, ...], Start] = {}
    for number, setting in enumerate((*written, *itertools.chain.from_iterable(kinds))):
        fitted = None if setting is None else pricing.fit(setting)
        if fitted is not None:
            start = Start(family_of(fitted), fitted, number < len(written))
            found.setdefault(pricing.effect(fitted), start)
    return tuple(found.values())


def _caches(base: Setting, pricing: Pricing) -> Iterator[Setting]:
    """Every site forecast in the steps between dense ones, of which there are as many as the budget allows."""
    whole = replace(base, removed=(1.0,) * len(base.removed), order=0)
    count = pricing.fewest(whole, range(1, base.steps))
    if count is None:
        return
    for order, dense in itertools.product((0, 1), dense_patterns(base.steps, count)):
        if order < count:
            yield replace(whole, order=order, dense=dense)


def _merges(base: Setting, pricing: Pricing) -> Iterator[Setting]:
    """Plain merging behind no or one dense step, even or less from step to step; with forecasts behind some."""
    for first, last in itertools.product((0, 1), _LAST):
        yield replace(falling(base, last), dense=tuple(range(first)))
    for count in _numbers(base, pricing):
        for order, dense in itertools.product((0, 1), dense_patterns(base.steps, count)):
            if order < count:
                yield replace(base, order=order, dense=dense)


def falling(setting: Setting, last: float) -> Setting:
    """Let fractions fall on one straight line through all stages: early steps can do with fewer tokens.

    Args:
        setting: The fraction of the first stage is that of the first step.
        last: What the last step has, as a part of it.
    """

    def line(step: int) -> float:
        return 1 + (last - 1) * step / max(setting.steps - 1, 1)

    firsts = [line(steps[0]) for steps in setting.ranges]
    lasts = [line(steps[-1]) for steps in setting.ranges]
    return replace(
        setting,
        removed=tuple(setting.removed[0] * first for first in firsts),
        left=tuple(end / first if first else 1.0 for first, end in zip(firsts, lasts, strict=True)),
    )


def _mixes(base: Setting, pricing: Pricing) -> Iterator[Setting]:
    """One stage forecast altogether, the others merged with forecasts."""
    if len(base.removed) == 1:
        return
    for stage in range(len(base.removed)):
        removed = tuple(1.0 if number == stage else f for number, f in enumerate(base.removed))
        for count in _numbers(replace(base, removed=removed), pricing):
            for order, dense in itertools.product((0, 1), dense_patterns(base.steps, count)):
                if order < count:
                    yield replace(base, removed=removed, order=order, dense=dense)


def _numbers(base: Setting, pricing: Pricing) -> tuple[int, ...]:
    """A few numbers of dense steps, and the largest, with which all others remove what methods can.

    Forecasts gain more from dense steps than from the tokens that are computed between them.
    """
    reach = pricing.reach(base.base)
    least = tuple(f if f == 1 else most for f, most in zip(base.removed, reach, strict=True))
    largest = pricing.fewest(replace(base, order=0, removed=least), range(1, base.steps))
    few = {max(1, round(base.steps * share)) for share in (0.15, 0.3, 0.45)}
    return tuple(sorted(few if largest is None else {*few, largest}))
