"""What a recipe says of keys: `merge` of a site, `reduce` of a stage, `plan.proportional`, and the full ratio."""

from __future__ import annotations

import re
from typing import Any

import pytest

from sdtm_fx.curve import ratio_curve
from sdtm_fx.errors import RecipeError, ScheduleError
from sdtm_fx.recipe import FullRatio, Recipe, load_recipe
from sdtm_fx.schedule import build_schedule

PLAIN: dict[str, Any] = {
    "version": 1,
    "name": "keys",
    "model": ["SD3Transformer2DModel"],
    "tokens": {"grid": {"latent": "hidden_states", "patch": 2}},
    "sites": [
        {"id": "attn", "kind": "attention", "match": "blocks.*.attn", "merge": "keys"},
        {"id": "ff", "kind": "feed_forward", "match": "blocks.*.ff"},
    ],
    "stages": [{"name": "all", "until": 1.0, "sites": ["attn"], "method": {"name": "todo"}}],
    "ratio": {"curve": "full"},
}
SKIP = {"name": "skip"}
REUSE = {"order": 0, "weight": 0.1}
TOMA = {"stages__all__method": {"name": "toma"}, "ratio": {"curve": "constant", "start": 0.5}}


def recipe(**changes: Any) -> Recipe:
    return load_recipe(PLAIN).override({name.replace("__", "."): value for name, value in changes.items()})


def test_it_loads_and_goes_round() -> None:
    loaded = recipe(plan__proportional=True, stages__all__reduce="prune")
    assert (loaded.sites[0].merge, loaded.sites[1].merge) == ("keys", "tokens")
    assert isinstance(loaded.ratio, FullRatio)
    assert Recipe.from_yaml_text(loaded.to_yaml()) == loaded


def test_defaults_keep_the_fingerprint_and_other_values_change_it() -> None:
    plain = recipe(sites__attn__merge="tokens")
    written = recipe(sites__attn__merge="tokens", stages__all__reduce=None, plan__proportional=False)
    others = [recipe(), recipe(plan__proportional=True), recipe(stages__all__reduce="mean")]
    assert written.fingerprint() == plain.fingerprint()
    assert len({plain.fingerprint(), *(other.fingerprint() for other in others)}) == 4


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            {"sites__ff__merge": "keys"},
            "sites[1].merge: found 'keys' at a site of kind 'feed_forward'; accepted 'keys' where attention is",
        ),
        ({"sites__attn__merge": "key"}, "found 'key'; accepted 'tokens' or 'keys' (did you mean 'keys'?)"),
        (
            {"stages__all__method": SKIP, "reuse": REUSE, "stages__all__sites": ["attn", "ff"]},
            "stages[0].sites: found 'attn', of which only keys are merged, in a stage that skips; "
            "accepted sites of whole tokens",
        ),
        (
            {"reuse": REUSE},
            "reuse: found reuse in a recipe that merges keys alone; accepted reuse beside a site of whole tokens",
        ),
        (
            {"plan__proportional": True, "stages__all__sites": ["ff"]},
            "plan.proportional: found true where no stage merges attention; accepted proportional attention",
        ),
        (
            {"stages__all__reduce": "prun"},
            "found 'prun'; accepted 'mean', 'prune' or 'mlerp' (did you mean 'prune'?)",
        ),
        (
            {"stages__all__method": {"name": "tofu"}, "ratio": {"curve": "constant", "start": 0.5}},
            "stages[0].reduce: found 'mlerp' at 'attn', of which only keys are merged, head by head; accepted 'mean'",
        ),
        (
            {"layers": [{"match": "**.0", "reduce": "mlerp"}]},
            "stages[0].reduce: found 'mlerp' at 'attn'",
        ),
        (
            TOMA,
            "stages[0].sites: found 'attn', of which only keys are merged, with method toma, which mixes slots; "
            "accepted a method under which every token has one slot, or a site of whole tokens",
        ),
        (
            {**TOMA, "sites__attn__merge": "tokens", "plan__proportional": True},
            "plan.proportional: found true with method toma in stage 'all', which mixes slots; accepted false there",
        ),
        (
            {**TOMA, "stages__all__sites": ["ff"], "stages__all__reduce": "prune"},
            "stages[0].reduce: found 'prune' for method toma, whose slots are weighted means of tokens; accepted "
            "'mean', or no reduce",
        ),
        (
            {
                **TOMA,
                "stages__all__sites": ["ff"],
                "layers": [{"match": "a", "scale": 0.5}, {"match": "b", "reduce": "mlerp"}],
            },
            "layers[1].reduce: found 'mlerp' in a recipe with method toma, whose slots are weighted means of tokens, "
            "in stage 'all'; accepted 'mean', or no reduce",
        ),
        ({"ratio": {"curve": "ful"}}, "ratio.curve: found 'ful'"),
        ({"stages__all__method": {"name": "todo", "factr": 2}}, "did you mean 'factor'?"),
        ({"stages__all__method": {"name": "todo", "factor": 1}}, "found factor 1; accepted 2 or more"),
    ],
)
def test_what_does_not_go_together_is_an_error(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(RecipeError, match=re.escape(message)):
        recipe(**changes)


def test_keys_need_no_shared_plan_where_there_are_rotary_tables() -> None:
    sites = {"sites__attn__rotary": "image_rotary_emb"}
    assert recipe(**sites).sites[0].rotary == "image_rotary_emb"
    with pytest.raises(RecipeError, match="whose rotary tables have no batch axis"):
        recipe(**sites, sites__attn__merge="tokens")


def test_slots_that_are_mixed_are_means_already() -> None:
    rules = recipe(**TOMA, stages__all__sites=["ff"], stages__all__reduce="mean")
    assert rules.stages[0].reduce == "mean"
    # A site elsewhere in the recipe is another matter.
    assert not recipe(**TOMA, stages__all__sites=["ff"]).stages[0].method.assigns


def test_reuse_stands_beside_reduced_keys() -> None:
    assert recipe(reuse=REUSE, stages__all__sites=["attn", "ff"]).reuse is not None


@pytest.mark.parametrize("grid", [(64, 64), (33, 47), (5, 1)])
@pytest.mark.parametrize("factor", [2, 3])
def test_the_full_ratio_is_what_the_method_can_remove(grid: tuple[int, int], factor: int) -> None:
    rules = recipe(stages__all__method={"name": "todo", "factor": factor})
    schedule = build_schedule(rules, steps=8, grid=grid)
    kept = -(-grid[0] // factor) * -(-grid[1] // factor)
    merged = [phase for phase in schedule.phases if phase.stage is not None]
    assert [schedule.tokens - phase.remove for phase in merged] == [kept]
    assert kept % schedule.round_to_used == 0
    assert schedule.cost_error == 0.0
    assert schedule.ratios[3] == merged[0].remove / schedule.tokens


def test_the_full_ratio_follows_the_stage() -> None:
    stages = [
        {"name": "early", "until": 0.5, "sites": ["attn"], "method": {"name": "todo", "factor": 3}},
        {"name": "late", "until": 1.0, "sites": ["ff"], "method": {"name": "uniform"}},
    ]
    schedule = build_schedule(load_recipe({**PLAIN, "stages": stages}), steps=10, grid=(12, 12))
    assert {p.stage: p.remove for p in schedule.phases} == {None: 0, 0: 128, 1: 108}


def test_a_grid_too_small_to_reduce_is_dense() -> None:
    schedule = build_schedule(recipe(), steps=4, grid=(1, 1))
    assert [phase.stage for phase in schedule.phases] == [None]


def test_the_full_ratio_has_no_curve() -> None:
    with pytest.raises(ScheduleError, match="the full ratio has no curve"):
        ratio_curve(FullRatio(curve="full"), 4)
