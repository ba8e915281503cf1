"""What parts give when they are computed whole, and what a search makes of it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from sdtm_fx.recipe import Recipe, load_recipe
from sdtm_fx.tuning.pricing import Pricing
from sdtm_fx.tuning.search import Search
from sdtm_fx.tuning.sensitivity import Part, Sensitivity, measure_sensitivities, parts_of, relieved
from sdtm_fx.tuning.setting import Setting
from sdtm_fx.tuning.starts import starting_points

GROUPS = [(0, 1, 2), (3, 4, 5)]


def merging(pricing: Pricing) -> Setting:
    return next(s.setting for s in starting_points(pricing) if s.family == "merging")


def blocks_matter(recipes: Sequence[Recipe]) -> list[list[float]]:
    """The second half of the blocks is worth 3, the attention 1, nothing else anything."""

    def quality(recipe: Recipe) -> float:
        late = {3, 4, 5} <= {*recipe.keep_dense.layers}
        return 3.0 * late + ("attn" not in recipe.stages[0].sites)

    return [[quality(recipe), quality(recipe)] for recipe in recipes]


def test_parts_are_sites_of_stages_and_groups_of_blocks(pricing: Pricing) -> None:
    labels = [part.label for part in parts_of(pricing.bases[0], GROUPS)]
    assert labels == ["attn in stage all", "ff in stage all", "blocks 0 to 2", "blocks 3 to 5"]
    assert [part.label for part in parts_of(pricing.bases[0], [(0,), (1, 2)])][2:] == [
        "block 0",
        "blocks 1 to 2",
    ]
    assert len(parts_of(pricing.bases[0], [(0, 1)])) == 2, "all blocks whole is no part"
    spans = [part.label for part in parts_of(load_recipe("toy-sd3"), GROUPS)]
    assert spans == ["blocks in stage all"], "what is forecast as one is not divided"


def test_a_part_computed_whole(pricing: Pricing) -> None:
    setting = merging(pricing)
    attention, blocks = Part("attn", 0, "attn"), Part("blocks", blocks=(1, 2))
    alone = attention.whole(setting)
    assert alone == replace(setting, sites=(("ff",),))
    assert alone is not None
    assert attention.whole(alone) is None, "whole already"
    assert Part("ff", 0, "ff").whole(alone) is None, "a stage keeps a site"
    some = blocks.whole(replace(setting, whole=(0, 1)))
    assert some is not None
    assert some.whole == (0, 1, 2)
    assert blocks.whole(some) is None


def test_sensitivities_are_quality_for_macs(pricing: Pricing) -> None:
    setting = merging(pricing)
    parts = parts_of(pricing.bases[0], GROUPS)
    found = measure_sensitivities(setting, [0.0, 0.0], pricing, parts, blocks_matter)
    assert [one.part.label for one in found[:2]] == ["blocks 3 to 5", "attn in stage all"]
    assert [one.gain for one in found] == [3.0, 1.0, 0.0, 0.0]
    late = found[0]
    dearer = replace(setting, whole=(3, 4, 5))
    assert late.share == 1 / pricing.price(dearer) - 1 / pricing.price(setting) > 0
    assert late.rate == 3.0 / (100 * late.share)


def test_sensitive_parts_are_relieved_at_the_budget(pricing: Pricing) -> None:
    setting = merging(pricing)
    parts = parts_of(pricing.bases[0], GROUPS)
    found = list(relieved(setting, pricing, [Sensitivity(p, 1.0, 0.1) for p in reversed(parts)]))
    assert found
    assert found[0].whole == (3, 4, 5)
    assert all(pricing.meets(one) and len(one.whole) < 6 for one in found)
    assert not list(relieved(setting, pricing, [Sensitivity(parts[2], -1.0, 0.1)])), "it gains nothing"


def test_a_search_measures_them_where_there_are_trials_enough(pricing: Pricing) -> None:
    starts = starting_points(pricing)
    seen: list[Sensitivity] = []
    search = Search(pricing, blocks_matter, len(starts) + 12, groups=GROUPS, on_sensitivity=seen.append)
    search.run(starts, 2)
    assert seen == search.sensitivities
    assert len(search.trials) + len(search.sensitivities) <= len(starts) + 12
    assert {3, 4, 5} <= {*search.best(1)[0].setting.whole}
    few = Search(pricing, blocks_matter, len(starts) + 3, groups=GROUPS)
    few.run(starts, 2)
    assert not few.sensitivities
