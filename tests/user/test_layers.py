"""Blocks that remove less than the others, or make something else of a slot."""

from __future__ import annotations

from typing import Any

import pytest
import torch

import sdtm_fx
from sdtm_fx.cost.counter import MacCounter
from sdtm_fx.errors import NothingMatched, SiteError
from sdtm_fx.explaining.render import as_text
from tests.pipelines import randomize, tiny_sd3_transformer
from tests.user.cases import FLUX_ATTENTION, SD3, all_equal, run_plain, run_steps, the_rewriting

STAGGERED = [
    {"match": "re:transformer_blocks.(0|4)", "scale": 0.0},
    {"match": "re:transformer_blocks.(2|6)", "scale": 0.5},
]
"""None, standard, reduced, standard per four blocks: ToMeSD on SD3, as the authors of SDTM ran it."""

TOME = {
    "stages": [{"name": "all", "until": 1.0, "sites": ["attn", "ff"], "method": {"name": "tome"}}],
    "ratio": {"curve": "linear", "start": 0.75, "end": 0.25, "levels": 3},
    "keep_dense": {"first_steps": 1, "last_steps": 0, "every_steps": None},
    "reuse": None,
}


def model(layers: int = 8) -> torch.nn.Module:
    return randomize(tiny_sd3_transformer(layers=layers), seed=3, scale=0.15)


def recipe(layers: list[dict[str, Any]], **changes: Any) -> sdtm_fx.Recipe:
    return SD3.recipe({**TOME, "layers": layers, **changes})


def kept_by_block(target: torch.nn.Module, count: int = 6) -> dict[str, list[int]]:
    with sdtm_fx.record_plans(target) as record:
        run_steps(target, SD3.inputs(), count)
    kept: dict[str, list[int]] = {}
    for site in record.at(kind="feed_forward"):
        kept.setdefault(site.block.rpartition(".")[2], []).append(site.kept)
    return kept


@pytest.mark.parametrize("method", ["tome", "ssm"])
def test_staggered_rates_and_a_ramp(method: str) -> None:
    target = sdtm_fx.rewrite(model(), recipe(STAGGERED, **{"stages.all.method": {"name": method}}))
    schedule = the_rewriting(target).runtime.schedule(6, (8, 8), 5)
    removed = [schedule.phase(step).remove for step in range(6)]
    assert removed[0] == 0
    assert removed[1:] == sorted(removed[1:], reverse=True)
    assert 2 <= len(set(removed[1:])) <= 3, "at most a phase per level, as without rules"
    kept = kept_by_block(target)
    assert kept["0"] == kept["4"] == [64] * 6
    for block in ("1", "3", "5", "7"):
        assert kept[block] == [64 - count for count in removed]
    for step, count in enumerate(removed):
        half = 64 - kept["2"][step]
        assert kept["6"][step] == kept["2"][step]
        assert abs(half - count / 2) <= (0.5 if method == "tome" else 1.5)


def test_explain_counts_what_each_block_removes() -> None:
    target = sdtm_fx.rewrite(model(), recipe(STAGGERED))
    told = sdtm_fx.explain(target, steps=6, grid=(8, 8), batch=2, text=5, quiet=True)
    assert told.kept_dense == ("transformer_blocks.0", "transformer_blocks.4")
    merged = [i for i, phase in enumerate(told.phases) if phase.removed]
    for index in merged:
        after = {s.path: s.tokens_after for s in told.sites if s.phase == index and s.site == "ff"}
        removed = told.phases[index].removed
        assert after["transformer_blocks.1.ff"] == 64 - removed
        assert after["transformer_blocks.2.ff"] == 64 - removed // 2
    text = as_text(told)
    assert f"64 -> {64 - told.phases[merged[0]].removed}" in text
    assert f"64 -> {64 - told.phases[merged[0]].removed // 2}" in text


def test_explain_agrees_with_a_direct_count() -> None:
    target, counted = sdtm_fx.rewrite(model(), recipe(STAGGERED)), []
    told = sdtm_fx.explain(target, steps=6, grid=(8, 8), batch=2, text=5, quiet=True)
    with sdtm_fx.steps(target, 6) as clock:
        for _ in range(6):
            with MacCounter() as counter:
                target(**SD3.inputs())
            counted.append(counter.macs.total)
            clock.advance()
    phase_of = {step: phase for phase in told.phases for step in phase.steps}
    for step, macs in enumerate(counted):
        assert macs == pytest.approx(phase_of[step].macs.total, rel=1e-6)


def test_a_share_that_rounds_to_none_is_said() -> None:
    rules = [{"match": "transformer_blocks.1", "scale": 0.01}]
    target = sdtm_fx.rewrite(model(3), recipe(rules, ratio={"curve": "constant", "start": 0.5}))
    told = sdtm_fx.explain(target, steps=4, grid=(8, 8), quiet=True)
    skipped = {s.skipped for s in told.sites if s.path == "transformer_blocks.1.ff" and s.phase == 1}
    assert skipped == {"its share of what this phase removes rounds to none"}
    assert kept_by_block(target, 4)["1"] == [64] * 4


def test_scale_one_and_no_rule_are_the_same() -> None:
    inputs = SD3.inputs()
    plain = run_steps(sdtm_fx.rewrite(model(3), recipe([])), inputs, 5)
    ones = run_steps(sdtm_fx.rewrite(model(3), recipe([{"match": "**", "scale": 1.0}])), inputs, 5)
    assert all_equal(plain, ones)
    halves = run_steps(sdtm_fx.rewrite(model(3), recipe([{"match": "**", "scale": 0.5}])), inputs, 5)
    assert not all_equal(plain, halves)


def test_plans_that_are_kept_fit_their_blocks() -> None:
    changes = {"plan.every_steps": 2, "ratio": {"curve": "constant", "start": 0.5}}
    target = sdtm_fx.rewrite(model(4), recipe(STAGGERED[1:], **changes))
    eager = run_steps(target, SD3.inputs(), 6)
    assert kept_by_block(target)["2"] == [64, *[48] * 5]
    runtime = the_rewriting(target).runtime
    runtime.static = True  # state is laid out before the blocks run, as for compiled code
    assert all_equal(run_steps(target, SD3.inputs(), 6), eager)
    (branch,) = runtime.state.branches.values()
    assert {group: plan.removed for group, plan in branch.plans.items()} == {0: 32, 1: 32, 2: 16, 3: 32}


def test_blocks_that_share_a_plan_may_make_different_things_of_a_slot() -> None:
    inputs = SD3.inputs()
    rules = [
        {"match": "transformer_blocks.0", "reduce": "prune"},
        {"match": "transformer_blocks.1", "reduce": "mlerp"},
    ]
    shared = {"plan.every_layers": 2}
    outputs = {
        name: run_steps(sdtm_fx.rewrite(model(2), recipe(layers, **changes)), inputs, 4)
        for name, layers, changes in (
            ("mean", [], shared),
            ("both", rules, shared),
            ("first", rules[:1], shared),
            ("all pruned", [], {**shared, "stages.all.reduce": "prune"}),
            ("pruned by rule", [{"match": "**", "reduce": "prune"}], shared),
        )
    }
    assert all_equal(outputs["all pruned"], outputs["pruned by rule"])
    different = ["mean", "both", "first", "all pruned"]
    for i, one in enumerate(different):
        for other in different[:i]:
            assert not all_equal(outputs[one], outputs[other]), (one, other)


def test_a_rule_wins_over_the_stage_and_the_stage_over_the_method() -> None:
    inputs = SD3.inputs()
    tofu = {"stages.all.method": {"name": "tofu", "reduce": "mlerp"}}

    def outputs(layers: list[dict[str, Any]], **changes: Any) -> list[torch.Tensor]:
        return run_steps(sdtm_fx.rewrite(model(2), recipe(layers, **changes)), inputs, 4)

    every = [{"match": "**", "reduce": "prune"}]
    pruned = outputs([], **{"stages.all.method": {"name": "tofu", "reduce": "prune"}})
    assert all_equal(outputs([], **tofu, **{"stages.all.reduce": "prune"}), pruned)
    assert all_equal(outputs(every, **tofu, **{"stages.all.reduce": "mean"}), pruned)
    assert not all_equal(outputs([], **tofu), pruned)


def test_rotary_blocks_take_rules_too() -> None:
    target = FLUX_ATTENTION.model()
    rules = [{"match": "single_transformer_blocks.1", "scale": 0.5, "reduce": "mlerp"}]
    few = {"ratio": {"curve": "constant", "start": 0.5}, "layers": rules}
    sdtm_fx.rewrite(target, FLUX_ATTENTION.recipe(few))
    with sdtm_fx.record_plans(target) as record:
        outputs = run_steps(target, FLUX_ATTENTION.inputs())
    assert all(bool(out.isfinite().all()) for out in outputs)
    merged = [s for s in record.at(action="merged") if s.stage == "structure"]
    kept = {s.block: s.kept for s in merged}
    first, second = kept["single_transformer_blocks.0"], kept["single_transformer_blocks.1"]
    assert abs((64 - second) - (64 - first) / 2) <= 1.5


# -- bad input ---------------------------------------------------------------------------------------


def test_a_rule_for_no_block_is_an_error() -> None:
    with pytest.raises(
        NothingMatched,
        match=r"layers\[0\]: 'transformer_block\.0' matches no block; near misses: transformer_blocks\.0",
    ):
        sdtm_fx.rewrite(model(2), recipe([{"match": "transformer_block.0", "scale": 0.5}]))


def test_two_rules_for_one_block_are_an_error() -> None:
    twice = [{"match": "**", "scale": 0.5}, {"match": "**.1", "scale": 0.2}]
    with pytest.raises(
        SiteError,
        match=r"layers\[0\] and layers\[1\] both say the scale of transformer_blocks\.1; accepted: one",
    ):
        sdtm_fx.rewrite(model(2), recipe(twice))
    other = [{"match": "**", "scale": 0.5}, {"match": "**.1", "reduce": "prune"}]
    sdtm_fx.rewrite(model(2), recipe(other))


def test_a_plan_group_of_different_rates_is_an_error() -> None:
    rules = [{"match": "transformer_blocks.1", "scale": 0.5}]
    target = model(4)
    before = run_plain(target, SD3.inputs(), 1)
    with pytest.raises(
        SiteError,
        match=r"transformer_blocks\.0 \(scale 1\) and transformer_blocks\.1 \(scale 0\.5\) would share a plan; "
        r"accepted: equal scales within every 2 blocks",
    ):
        sdtm_fx.rewrite(target, recipe(rules, **{"plan.every_layers": 2}))
    assert all_equal(run_plain(target, SD3.inputs(), 1), before)
    dense = [{"match": "transformer_blocks.1", "scale": 0.0}]
    sdtm_fx.rewrite(target, recipe(dense, **{"plan.every_layers": 2}))


def test_rules_that_leave_nothing_are_an_error() -> None:
    with pytest.raises(
        NothingMatched, match=r"layers with scale 0 keep every block; nothing is left to merge"
    ):
        sdtm_fx.rewrite(model(2), recipe([{"match": "**", "scale": 0.0}]))
