"""The search: budgets are met, changes change one thing, and it climbs."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import replace

import pytest

from sdtm_fx.recipe import Recipe, load_recipe
from sdtm_fx.tuning.moves import afforded, changed
from sdtm_fx.tuning.pricing import Pricing
from sdtm_fx.tuning.search import OF_EACH_FAMILY, Search, Trial
from sdtm_fx.tuning.setting import Setting, setting_of
from sdtm_fx.tuning.starts import Start, _merges, family_of, starting_points


def cache(pricing: Pricing, *dense: int) -> Setting:
    start = next(s.setting for s in starting_points(pricing) if s.family == "caching")
    return replace(start, dense=dense, order=0)


def test_starting_points_meet_the_budget_and_differ(pricing: Pricing) -> None:
    starts = starting_points(pricing)
    assert len({start.setting for start in starts}) == len(starts)
    assert {start.family for start in starts} == {"caching", "merging"}
    for start in starts:
        assert pricing.price(start.setting) >= pricing.speedup * (1 - 1e-6)
        assert family_of(start.setting) == start.family


def test_merging_is_fitted_to_the_budget_from_below(pricing: Pricing) -> None:
    merging = [s.setting for s in starting_points(pricing) if s.family == "merging"]
    assert all(pricing.price(setting) < pricing.speedup * 1.1 for setting in merging)


def test_caches_have_as_many_dense_steps_as_the_budget_allows(pricing: Pricing) -> None:
    start = next(s.setting for s in starting_points(pricing) if s.family == "caching")
    more = replace(start, dense=tuple(range(len(start.dense) + 1)))
    assert pricing.meets(start)
    assert not pricing.meets(more)


def test_what_cannot_be_cheap_enough(pricing: Pricing) -> None:
    assert pricing.fit(cache(pricing, *range(7))) is None
    dear = replace(cache(pricing, *range(7)), removed=(0.3,))
    assert pricing.fit(dear) is None


def test_blocks_are_divided_evenly(pricing: Pricing) -> None:
    pricing.price(cache(pricing, 0))
    groups = pricing.block_groups(4)
    assert [block for group in groups for block in group] == list(range(6))
    assert {len(group) for group in groups} == {1, 2}
    assert pricing.block_groups(100) == tuple((block,) for block in range(6))


def test_changes_change_one_thing(pricing: Pricing) -> None:
    setting = cache(pricing, 0, 2, 5)
    found = changed(setting, pricing, [(0, 1), (2, 3)])
    names = [
        {name for name, value in vars(other).items() if value != getattr(setting, name)} for other in found
    ]
    assert all(len(name) == 1 for name in names)
    assert {next(iter(name)) for name in names} == {"dense", "order", "removed", "whole", "sites"}
    assert all(0 in other.dense for other in found), "something has to be stored first"
    assert (0, 1) in {other.whole for other in found}
    alone = replace(setting, sites=(("ff",),))
    assert ("attn", "ff") in {other.sites[0] for other in changed(alone, pricing, ())}


def test_merging_trades_dense_steps_for_fractions(pricing: Pricing) -> None:
    setting = replace(cache(pricing, 0, 3), removed=(0.5,))
    found = changed(setting, pricing, ())
    assert {len(other.dense) for other in found} == {1, 2, 3}
    assert {1, 2, 3} <= {other.plan_steps for other in found}
    assert None in {other.order for other in found}


def test_what_is_too_dear_is_paid_for_with_a_dense_step(pricing: Pricing) -> None:
    fitting = next(s.setting for s in starting_points(pricing) if s.family == "caching")
    dear = replace(fitting, dense=(*fitting.dense, max(fitting.dense) + 1))
    paid = list(afforded(dear, pricing))
    assert paid
    for setting in paid:
        assert len(setting.dense) == len(fitting.dense)
        assert pricing.meets(setting)
    assert list(afforded(fitting, pricing)) == [fitting]


def made_up(recipes: Sequence[Recipe]) -> list[list[float]]:
    """Best with dense steps 0, 3, 5 and 6, which no pattern has, and a forecast of order 1."""

    def quality(recipe: Recipe) -> float:
        order = -1 if recipe.reuse is None else recipe.reuse.order
        return order - len({*recipe.keep_dense.steps} ^ {0, 3, 5, 6})

    return [[quality(recipe), quality(recipe)] for recipe in recipes]


def search(pricing: Pricing, most: int = 60, **changes: object) -> Search:
    found = Search(pricing, made_up, most, groups=[(0, 1, 2)], **changes)  # type: ignore[arg-type]
    found.run(starting_points(pricing), 2)
    return found


def test_it_climbs_from_the_starting_points(pricing: Pricing) -> None:
    starts = {start.setting for start in starting_points(pricing)}
    found = search(pricing)
    best, begun = found.best(1)[0], [t for t in found.trials if t.setting in starts]
    assert best.mean > max(trial.mean for trial in begun)
    assert all(trial.speedup >= pricing.speedup * (1 - 1e-6) for trial in found.trials)
    assert len({trial.setting for trial in found.trials}) == len(found.trials) <= 60


def test_starting_points_are_sifted_at_a_glance(pricing: Pricing) -> None:
    starts = starting_points(pricing)
    glanced: list[Start] = []

    def glance(recipes: Sequence[Recipe]) -> list[list[float]]:
        return [
            [float("-inf")] if recipe.reuse is None else [sum(made_up([recipe])[0])] for recipe in recipes
        ]

    found = Search(
        pricing, made_up, len(starts), glance=glance, on_glance=lambda start, of: glanced.append(start)
    )
    found.run(starts, 1)
    assert [start.setting for start in glanced] == [start.setting for start in starts]
    tried = [s for s in starts if s.setting in {t.setting for t in found.trials}]
    number = Counter(start.family for start in tried)
    assert set(number) == {start.family for start in starts}, "every family is tried"
    assert min(number.values()) >= OF_EACH_FAMILY
    assert max(starts, key=lambda s: glance([pricing.recipe(s.setting)])[0][0]) in tried
    assert len(tried) < len(starts)


def test_nothing_is_sifted_where_there_is_no_time(pricing: Pricing) -> None:
    found = Search(pricing, made_up, 60, glance=made_up, out_of_time=lambda: True)
    found.run(starting_points(pricing), 1)
    assert not found.trials


def test_equal_searches_are_equal_and_seeds_differ(pricing: Pricing) -> None:
    assert search(pricing).trials == search(pricing).trials
    assert search(pricing).trials != search(pricing, seed=1).trials


def test_it_stops_at_the_number_of_trials_and_at_the_clock(pricing: Pricing) -> None:
    assert len(search(pricing, most=7, together=2).trials) == 7
    made: list[Trial] = []
    stopped = search(pricing, on_trial=made.append, out_of_time=lambda: len(made) >= 3)
    assert stopped.trials == made
    assert len(made) == 3


def test_the_best_of_a_family(pricing: Pricing) -> None:
    found = search(pricing, most=30)
    for family in ("caching", "merging"):
        best = found.best(3, family)
        assert {trial.family for trial in best} == {family}
        assert [t.mean for t in best] == sorted((t.mean for t in best), reverse=True)


def test_one_measurement_prices_kept_plans_too(pricing: Pricing) -> None:
    merging = next(s.setting for s in starting_points(pricing) if s.family == "merging")
    kept = replace(merging, plan_steps=3)
    alone = Pricing(pricing.bases, pricing.target, pricing.size, pricing.speedup, "alone")
    assert alone.price(kept) == pricing.price(kept)


def test_several_recipes_are_searched_at_once(pricing: Pricing) -> None:
    other = pricing.bases[0].override(
        {"name": "other", "stages.all.method": {"name": "random"}, "stages.all.sites": ["ff"]}
    )
    both = Pricing((*pricing.bases, other), pricing.target, pricing.size, 1.2, "both")
    starts = starting_points(both)
    families = {(start.setting.base, start.family) for start in starts}
    assert families == {(0, "caching"), (0, "merging"), (1, "merging")}, "caches of the same sites are equal"
    merging = next(start.setting for start in starts if start.setting.base == 1)
    assert both.recipe(merging).stages[0].method.name == "random"
    assert {one.sites for one in changed(merging, both, ())} == {(("ff",),)}


def test_blocks_with_a_part_of_the_ratio_are_not_forecast(pricing: Pricing) -> None:
    layers = [{"match": "transformer_blocks.0", "scale": 0.5}]
    scaled = pricing.bases[0].override(layers=layers)
    both = Pricing((scaled, *pricing.bases), pricing.target, pricing.size, 1.2, "both")
    assert [both.may_forecast(base) for base in (0, 1)] == [False, True]
    starts = starting_points(both)
    assert {s.setting.base for s in starts if s.family == "merging"} == {0, 1}
    assert {s.setting.base for s in starts if s.family == "caching"} == {1}
    stored = next(s.setting for s in starts if s.setting.base == 0 and s.setting.order is not None)
    assert 1 not in {f for one in changed(stored, both, ()) for f in one.removed}


def test_merging_starts_evenly_and_falling(pricing: Pricing) -> None:
    stages = [
        {"name": name, "until": until, "sites": ["attn", "ff"], "method": {"name": "tome"}}
        for name, until in (("early", 0.3), ("middle", 0.6), ("late", 1.0))
    ]
    base = pricing.bases[0].override(stages=stages)
    own = Pricing((base,), pricing.target, pricing.size, pricing.speedup, "three-stages")
    three = setting_of(base, pricing.size.steps, removed=0.4)
    plain = [setting for setting in _merges(three, own) if setting.order is None]
    assert [(one.dense, one.removed, one.left) for one in plain] == [
        (dense, pytest.approx(removed), pytest.approx(left))
        for dense in ((), (0,))
        for removed, left in (
            ((0.4, 0.4, 0.4), (1.0, 1.0, 1.0)),
            ((0.4, 0.4 * 6 / 7, 0.4 * 9 / 14), (13 / 14, 5 / 6, 7 / 9)),
            ((0.4, 0.4 * 5 / 7, 0.4 * 2 / 7), (6 / 7, 3 / 5, 0.0)),
        )
    ]


def test_merging_may_fall_inside_of_a_stage(pricing: Pricing) -> None:
    merging = replace(cache(pricing, 0, 3), removed=(0.5,), left=(0.5,))
    found = {other.left for other in changed(merging, pricing, ()) if other.left != merging.left}
    assert found == {(0.0,), (1.0,)}
    assert pricing.price(replace(merging, left=(0.0,))) < pricing.price(merging)
    alone = replace(merging, removed=(1.0,))
    assert {other.left for other in changed(alone, pricing, ()) if other.left != alone.left} == set()


def test_of_a_recipe_that_forecasts_dense_steps_are_searched(pricing: Pricing) -> None:
    base = load_recipe("toy-sd3")
    both = Pricing((*pricing.bases, base), pricing.target, pricing.size, pricing.speedup, "both")
    own = [start for start in starting_points(both) if start.setting.base == 1]
    assert {start.family for start in own} == {"caching"}
    assert {start.setting.order for start in own} == {0, 1}
    for start in own:
        assert both.meets(start.setting)
        assert not both.recipe(start.setting).stages[0].method.merges
    beside = changed(own[0].setting, both, [(0, 1, 2), (3, 4, 5)])
    names = {
        name for other in beside for name, v in vars(other).items() if v != getattr(own[0].setting, name)
    }
    assert names == {"dense", "order"}
    site = replace(own[0].setting, base=0, sites=(("attn", "ff"),))
    assert both.price(own[0].setting) > both.price(site), "no block runs, not even for the text"


def test_caches_by_site_may_leave_blocks_whole_where_the_recipe_forecasts(pricing: Pricing) -> None:
    base = load_recipe("baselines/fora-toy-sd3")
    own = Pricing((base,), pricing.target, pricing.size, pricing.speedup, "own")
    start = starting_points(own)[0].setting
    assert {one.whole for one in changed(start, own, [(0, 1, 2), (3, 4, 5)])} == {(), (0, 1, 2), (3, 4, 5)}


def test_what_the_recipes_say_is_the_first_start_and_never_sifted_out(pricing: Pricing) -> None:
    own = pricing.bases[0].override(
        {
            "keep_dense": {"first_steps": 1, "last_steps": 1, "every_steps": 3},
            "reuse": {"order": 0, "weight": 0.2},
        }
    )
    alone = Pricing((own,), pricing.target, pricing.size, pricing.speedup, "own")
    starts = starting_points(alone)
    assert [start.written for start in starts] == [True, *[False] * (len(starts) - 1)]
    first = starts[0].setting
    assert (first.dense, first.order, first.weight) == ((0, 3, 6, 7), 0, 0.2)

    def dislike(recipes: Sequence[Recipe]) -> list[list[float]]:
        mine = alone.recipe(first)
        return [[-100.0 if recipe.keep_dense.steps == mine.keep_dense.steps else 0.0] for recipe in recipes]

    found = Search(alone, made_up, len(starts), glance=dislike)
    found.run(starts, 1)
    assert first in {trial.setting for trial in found.trials}


def test_settings_that_do_the_same_are_tried_once(pricing: Pricing) -> None:
    merging = replace(cache(pricing, 0, 3), removed=(0.5,), order=None)
    hardly = replace(merging, removed=(0.5001,))
    assert pricing.effect(merging) == pricing.effect(hardly)
    idle = replace(merging, weight=0.3)
    assert pricing.effect(merging) == pricing.effect(idle), "nothing is forecast"
    for other in (
        replace(merging, whole=(1,)),
        replace(merging, sites=(("ff",),)),
        replace(merging, dense=(0, 2)),
    ):
        assert pricing.effect(merging) != pricing.effect(other)
    once = Search(pricing, made_up, 10)
    once.run([Start("merging", merging)], 1)
    assert len({pricing.effect(trial.setting) for trial in once.trials}) == len(once.trials) > 4


def test_blocks_that_a_recipe_keeps_are_whole_already(pricing: Pricing) -> None:
    kept = pricing.bases[0].override({"keep_dense.layers": [0]})
    own = Pricing((kept,), pricing.target, pricing.size, pricing.speedup, "kept")
    setting = setting_of(kept, pricing.size.steps, removed=0.5)
    assert own.effect(setting) == own.effect(replace(setting, whole=(0,)))
    assert own.effect(setting) != own.effect(replace(setting, whole=(0, 1)))
