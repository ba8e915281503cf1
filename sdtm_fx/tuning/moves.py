"""What lies beside a setting: small changes, and what pays for them."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence
from dataclasses import replace

from sdtm_fx.rewriting.spans import uses_spans
from sdtm_fx.tuning.pricing import Pricing
from sdtm_fx.tuning.setting import Setting

_WEIGHTS = (0.0, 0.1, 0.3)
_FACTORS = (0.7, 1.4)
_LEFT = (0.0, 0.5, 1.0)
_PLAN_STEPS = (1, 2, 3)


def changed(setting: Setting, pricing: Pricing, groups: Sequence[tuple[int, ...]]) -> list[Setting]:
    """Settings that differ in one thing, whatever they cost.

    Args:
        setting: Where to look around.
        pricing: Knows the recipes that settings are said in.
        groups: Blocks, by number, that are computed whole or not together.
    """
    found = [
        *_shifted(setting), *_traded(setting), *_reuses(setting), *_boundaries(setting),
        *_balances(setting), *_falls(setting), *_layers(setting, groups), *_sites(setting, pricing),
        *_intervals(setting),
    ]  # fmt: skip
    return [s for s in found if _possible(s, pricing)]


def _possible(setting: Setting, pricing: Pricing) -> bool:
    """Whether a recipe can say it: some cannot forecast, others nothing else, and a span that does is not divided."""
    if pricing.merges(setting.base):
        return 1 not in setting.removed or pricing.may_forecast(setting.base)
    return setting.caches and not (setting.whole and uses_spans(pricing.bases[setting.base]))


def afforded(setting: Setting, pricing: Pricing) -> Iterator[Setting]:
    """Bring a setting to the budget: by its fractions, or by giving up one dense step, whichever.

    Args:
        setting: May be too dear.
        pricing: The budget and what settings cost.
    """
    fitted = pricing.fit(setting)
    if fitted is not None:
        yield fitted
    else:
        yield from _paid(setting, pricing)


def _paid(setting: Setting, pricing: Pricing) -> Iterator[Setting]:
    fixed = 0 if setting.order is None else 1
    if len(setting.dense) <= setting.least_dense:
        return
    for step in setting.dense[fixed:]:
        fitted = pricing.fit(_with_dense(setting, {*setting.dense} - {step}))
        if fitted is not None:
            yield fitted


def _shifted(setting: Setting) -> Iterator[Setting]:
    """One dense step moved by one or two steps; the first stays where anything is stored."""
    fixed = 0 if setting.order is None else 1
    for step, by in itertools.product(setting.dense[fixed:], (-1, 1, -2, 2)):
        moved = step + by
        if fixed <= moved < setting.steps and moved not in setting.dense:
            yield _with_dense(setting, {*setting.dense} - {step} | {moved})


def _traded(setting: Setting) -> Iterator[Setting]:
    """One dense step more or less, where fractions can make up for it."""
    if not setting.merges:
        return
    fixed = 0 if setting.order is None else 1
    free = [step for step in range(setting.steps) if step not in setting.dense]
    for step in free:
        yield _with_dense(setting, {*setting.dense, step})
    if len(setting.dense) > setting.least_dense:
        yield from (_with_dense(setting, {*setting.dense} - {step}) for step in setting.dense[fixed:])


def _reuses(setting: Setting) -> Iterator[Setting]:
    """Another order of the forecast, none, or another weight of new values."""
    for order in (None, 0, 1):
        possible = order is None or (0 in setting.dense and order < len(setting.dense))
        if order != setting.order and possible and not (order is None and 1 in setting.removed):
            yield replace(setting, order=order)
    if setting.order is not None and setting.merges:
        yield from (replace(setting, weight=weight) for weight in _WEIGHTS if weight != setting.weight)


def _boundaries(setting: Setting) -> Iterator[Setting]:
    """One boundary between stages moved by a tenth of the steps, at least one."""
    by = max(1, setting.steps // 10)
    for number, shift in itertools.product(range(len(setting.ends) - 1), (-by, by)):
        ends = [*setting.ends]
        ends[number] += shift
        if ends == sorted(set(ends)) and ends[0] > 0:
            yield replace(setting, ends=tuple(ends))


def _balances(setting: Setting) -> Iterator[Setting]:
    """One stage removes more or less than before beside the others, or is forecast altogether, or merged again."""
    for number, fraction in enumerate(setting.removed):
        others = [f for at, f in enumerate(setting.removed) if at != number and f < 1]
        if fraction < 1:
            changed = [fraction * factor for factor in _FACTORS] if others else []
            changed += [1.0] if setting.order is not None else []
        else:
            changed = [0.5]
        for value in changed:
            removed = tuple(value if at == number else f for at, f in enumerate(setting.removed))
            yield replace(setting, removed=removed)


def _falls(setting: Setting) -> Iterator[Setting]:
    """One stage removes ever less from its first step to its last, or as much throughout."""
    for number, steps in enumerate(setting.ranges):
        if len(steps) > 1 and setting.removed[number] < 1:
            for part in _LEFT:
                left = tuple(part if at == number else own for at, own in enumerate(setting.left))
                if left != setting.left:
                    yield replace(setting, left=left)


def _layers(setting: Setting, groups: Sequence[tuple[int, ...]]) -> Iterator[Setting]:
    """One group of blocks computed whole in every step, or no longer; some blocks always merge."""
    every = {block for group in groups for block in group}
    for group in groups:
        whole = {*setting.whole} ^ {*group}
        if whole < every:
            yield replace(setting, whole=tuple(sorted(whole)))


def _sites(setting: Setting, pricing: Pricing) -> Iterator[Setting]:
    """One site of one stage left dense, or merged again; each stage has one at least."""
    for number, stage in enumerate(pricing.bases[setting.base].stages):
        for site in stage.sites:
            own = tuple(s for s in stage.sites if (s in setting.sites[number]) != (s == site))
            if own:
                sites = tuple(own if at == number else s for at, s in enumerate(setting.sites))
                yield replace(setting, sites=sites)


def _intervals(setting: Setting) -> Iterator[Setting]:
    """Plans that serve more steps, or fewer."""
    if setting.merges:
        yield from (replace(setting, plan_steps=n) for n in _PLAN_STEPS if n != setting.plan_steps)


def _with_dense(setting: Setting, dense: set[int]) -> Setting:
    return replace(setting, dense=tuple(sorted(dense)))
