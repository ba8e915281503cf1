"""The cost gate on whole models, with made-up devices."""

from __future__ import annotations

import itertools
from pathlib import Path
from typing import Any

import pytest
import torch

import sdtm_fx
from sdtm_fx.cost.counter import MacCounter
from sdtm_fx.cost.gate import Offer
from sdtm_fx.cost.gating import _Gate
from sdtm_fx.cost.profile import DeviceProfile
from sdtm_fx.errors import CalibrationError
from sdtm_fx.explaining.render import as_text
from sdtm_fx.explaining.report import Explanation
from sdtm_fx.rewriting.rewriting import Rewriting
from sdtm_fx.rewriting.serving import dense_variant
from sdtm_fx.runtime.call import Variant
from sdtm_fx.runtime.schedules import CallSize, Schedules
from tests.rates import made_up
from tests.user.cases import (
    FLUX_ATTENTION,
    SD3,
    all_equal,
    distance,
    moving,
    observed_inputs,
    run_plain,
    run_steps,
    the_rewriting,
)
from tests.user.conftest import Measured

FLAT = {"ratio": {"curve": "constant", "start": 0.7}}
COSTLY = made_up(linear=1e12, launch=1.0)
"""Starting an operation takes a second: nothing pays."""
NO_COST = made_up(linear=1e9)
"""Merging costs nothing."""
ONLY_FF = made_up(linear=1.0, gathered=0.25)
"""Attention of the tiny SD3 has half the linear work of the feed-forward, and attends for nothing."""
ONLY_ATTENTION = made_up(attention=1.0, launch=1.0)
"""Linear layers take no time."""

SIZE = CallSize(steps=8, grid=(8, 8), batch=2, text=5)


def rewritten(changes: dict[str, Any] | None = None, case: Any = SD3) -> torch.nn.Module:
    return sdtm_fx.rewrite(case.model(), case.recipe({**FLAT, **(changes or {})}))


def explained(model: torch.nn.Module, steps: int = 8, batch: int = 2) -> Explanation:
    return sdtm_fx.explain(model, steps=steps, grid=(8, 8), batch=batch, text=5, quiet=True)


def test_where_nothing_pays_every_step_is_dense_and_that_is_said(
    measured: Measured, caplog: pytest.LogCaptureFixture
) -> None:
    measured(COSTLY)
    model, inputs = SD3.model(), SD3.inputs()
    plain = run_plain(model, inputs)
    sdtm_fx.rewrite(model, SD3.recipe(FLAT))
    assert all_equal(run_steps(model, inputs), plain)
    (warned,) = (r.getMessage() for r in caplog.records if r.name == "sdtm_fx.idle_stages")
    assert warned.startswith("sd3-medium-windows: every one of the 8 steps is dense: the cost gate found")
    report = explained(model)
    assert [(p.label, p.removed, p.stores) for p in report.phases] == [("dense", 0, True)]
    assert report.phases[0].steps == tuple(range(8))
    assert report.theoretical_speedup == 1.0
    assert {(s.stage, s.site) for s in report.gate.sites} == {
        ("structure", "attn"), ("structure", "ff"), ("detail", "ff"),
    }  # fmt: skip
    assert all(0 < s.saved < s.spent for s in report.gate.sites)
    calls = the_rewriting(model).runtime
    assert calls.state.bytes()["features"] == 0, "no later step reads any"
    sdtm_fx.restore(model)
    assert all_equal(run_plain(model, inputs), plain)


def test_where_merging_is_free_nothing_is_left_out(measured: Measured) -> None:
    off = rewritten({"gate": "off"})
    expected = run_steps(off, SD3.inputs())
    measured(NO_COST)
    model = rewritten()
    assert all_equal(run_steps(model, SD3.inputs()), expected)
    report = explained(model)
    assert (report.gate.active, report.gate.sites) == (True, ())
    assert report.phases == explained(off).phases
    assert list(the_rewriting(model).runtime.gate(SIZE).merges.values()) == [{}, {}]  # type: ignore[union-attr]


def merged_tokens(model: torch.nn.Module, match: str) -> list[int]:
    """Image tokens that the modules compute, over a generation of eight steps."""
    with observed_inputs(model, match) as seen:
        run_steps(model, SD3.inputs())
    return [shape[1] for _, shape in seen]


@pytest.mark.parametrize(
    ("profile", "kept", "dropped"), [(ONLY_FF, "ff", "attn"), (ONLY_ATTENTION, "attn", "ff")]
)
def test_one_of_two_sites_is_left_out(
    measured: Measured, profile: DeviceProfile, kept: str, dropped: str
) -> None:
    measured(profile)
    model = rewritten()
    assert set(merged_tokens(model, f".{dropped}")) == {64}
    assert len(set(merged_tokens(model, f".{kept}"))) > 1
    (remove,) = {p.removed for p in explained(model).phases if p.label == "structure"}
    programs = the_rewriting(model).cache.programs.values()
    without = frozenset({dropped})
    for program in programs:
        merge, store = Variant(0, left_out=without), Variant(None, refresh=0, left_out=without)
        for name, count in (("plan_tokens(", 1), ("merge_tokens(", 1), ("blend_forecast(", 1)):
            assert program.code[merge].count(name) == count, name
        assert program.code[store].count("store_feature(") == 1
        assert program.features[merge] == program.features[store] == {kept}
        assert program.code[Variant(0)].count("blend_forecast(") == 2, "with both sites, as a comparison"
    decision = the_rewriting(model).runtime.gate(SIZE)
    assert decision is not None
    assert {v.left_out for v in decision.merges[0, remove].values()} == {without}


def test_features_of_what_is_left_out_are_not_stored(measured: Measured) -> None:
    def held() -> set[str]:
        model = rewritten({"stages.detail.sites": ["attn", "ff"]})
        run_steps(model, SD3.inputs())
        branches = the_rewriting(model).runtime.state.branches.values()
        return {name for branch in branches for _, name in branch.features}

    assert held() == {"attn", "ff"}
    measured(ONLY_ATTENTION)
    assert held() == {"attn"}


def test_the_macs_of_explain_are_those_that_run(measured: Measured) -> None:
    measured(ONLY_ATTENTION)
    model, inputs = rewritten(), SD3.inputs()
    report = explained(model)
    expected = {step: phase.macs for phase in report.phases for step in phase.steps}
    with sdtm_fx.steps(model, 8) as clock:
        for step in range(8):
            with MacCounter() as counter:
                model(**moving(inputs, step, 8))
            assert counter.macs.linear == pytest.approx(expected[step].linear, rel=1e-6), step
            assert counter.macs.total == pytest.approx(expected[step].total, rel=1e-6), step
            clock.advance()
    structure = next(i for i, p in enumerate(report.phases) if p.label == "structure")
    (skipped,) = {s.skipped for s in report.sites if s.phase == structure and s.site == "ff"}
    assert skipped == "the cost gate left it out"
    assert {s.skipped for s in report.sites if s.phase == structure and s.site == "attn"} == {None}


def test_equal_runs_give_equal_outputs_and_batches_are_decided_apart(measured: Measured) -> None:
    measured(made_up(linear=1.0, launch=1000.0))
    model = rewritten()
    runs = [run_steps(model, SD3.inputs()) for _ in range(2)]
    assert all_equal(*runs)
    runtime = the_rewriting(model).runtime
    stages = [{p.stage for p in runtime.schedule(8, (8, 8), 5, batch).phases} for batch in (1, 8)]
    assert stages[0] < stages[1], "one sample does not pay the launches, eight do"
    assert {None, 0} <= stages[1]


def test_one_threshold_of_the_launch_separates_keeping_from_leaving_out(measured: Measured) -> None:
    measured(NO_COST)
    schedules = the_rewriting(rewritten()).schedules
    kept = []
    for launch in (1e-9, 1e-7, 1e-6, 1e-5, 1e-3):
        profiles = {schedules.device_key(None, compiled=False): made_up(linear=1e9, launch=launch)}
        asked = Schedules(schedules.recipe, schedules.cost, schedules.refreshes, profiles)
        decision = asked.gate(SIZE, None, compiled=False)
        assert decision is not None
        kept.append({(v.stage, v.block, v.site) for v in decision.verdicts if v.kept})
    assert kept[0]
    assert not kept[-1]
    assert all(late <= early for early, late in itertools.pairwise(kept))


def test_plans_of_several_layers_and_steps_are_paid_once(measured: Measured) -> None:
    measured(made_up(launch=1.0, linear=1000.0))

    def plan(changes: dict[str, Any]) -> tuple[float, bool]:
        decision = the_rewriting(
            rewritten({"stages.structure.sites": ["ff"], "reuse": None, **changes})
        ).runtime.gate(SIZE)
        assert decision is not None
        first = decision.verdicts[0]
        return first.spent, first.kept

    alone, shared = plan({}), plan({"plan.every_layers": 2})
    assert shared[0] < alone[0], "another block of the group has the plan made already"
    sometimes = plan({"plan.every_steps": 4, "keep_dense.every_steps": None})
    assert (alone[1], shared[1], sometimes[1]) == (True, True, True)


def test_sites_that_join_before_they_are_stored_stay_together(
    measured: Measured, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One refresh serves all levels; a FLUX single block stores attention and MLP under one name."""
    measured(NO_COST)
    wish: dict[int, str] = {}

    def offer(self: _Gate, block: Any, level: Any, kept: frozenset[str], sites: frozenset[str]) -> Offer:
        single = wish.setdefault(level[1], "both" if not wish else "one")
        wanted = sites if single == "both" else frozenset(s for s in sites if s.endswith("ff"))
        return Offer(kept, 10.0 if kept == wanted else 5.0, 1.0)

    monkeypatch.setattr(_Gate, "_offer", offer)
    levels = {
        "ratio": {"curve": "linear", "start": 0.7, "end": 0.3, "levels": 3},
        "stages.structure.until": 0.9,
    }
    model = rewritten(levels, FLUX_ATTENTION)
    rewriting = the_rewriting(model)
    assert_stores_suffice(rewriting)
    decision = rewriting.runtime.gate(SIZE)
    assert decision is not None
    left = {
        v.left_out for variants in decision.merges.values() for p, v in variants.items() if "single" not in p
    }
    assert left == {frozenset({"attn"})}, "double blocks store them apart, and each level has its own way"
    assert not any(p.startswith("single") for variants in decision.merges.values() for p in variants)
    with sdtm_fx.record_plans(model) as record:
        run_steps(model, FLUX_ATTENTION.inputs())
    actions = {(s.kind, s.action) for s in record.at(step=4, block="transformer_blocks.0")}
    assert ("feed_forward", "merged") in actions


def assert_stores_suffice(rewriting: Rewriting) -> None:
    decision = rewriting.runtime.gate(SIZE)
    assert decision is not None
    for path, binding in rewriting.bindings.items():
        for program in binding.programs.values():
            for (stage, _), variants in decision.merges.items():
                read = program.features.get(variants.get(path, Variant(stage)), frozenset())
                dense = dense_variant(rewriting.recipe, stage)
                assert dense.refresh is not None
                variant = decision.stores.get(dense.refresh, {}).get(path, dense)
                assert read <= program.features.get(variant, frozenset()), path


@pytest.mark.parametrize(
    "changes",
    [
        {"stages.detail.method": {"name": "skip"}},
        {"reuse": None},
        {"stages.structure.ratio": {"threshold": 0.2, "start": 0.5}},
        {"stages.detail.method": {"name": "idm"}},
        {"prompt": {"start": 2.0, "end": 1.0}},
    ],
    ids=["skip", "no features", "threshold", "attention read", "prompt weight"],
)
def test_other_recipes_run_with_sites_left_out(measured: Measured, changes: dict[str, Any]) -> None:
    off = run_steps(rewritten({**changes, "gate": "off"}), SD3.inputs())
    measured(COSTLY)
    costly = run_steps(rewritten(changes), SD3.inputs())
    if not {"prompt", "stages.detail.method"} & set(changes):  # a forecast saves launches too
        assert all_equal(costly, run_plain(SD3.model(), SD3.inputs()))
    measured(ONLY_ATTENTION)
    some = run_steps(rewritten(changes), SD3.inputs())
    assert distance(some, off) > 0
    measured(NO_COST)
    assert all_equal(run_steps(rewritten(changes), SD3.inputs()), off)


def test_a_forecast_needs_no_plan(measured: Measured) -> None:
    measured(made_up(linear=1.0, sorted=1e-9))  # whatever sorts takes ages
    decision = the_rewriting(rewritten({"stages.detail.method": {"name": "skip"}})).runtime.gate(SIZE)
    assert decision is not None
    assert {(v.stage, v.kept) for v in decision.verdicts} == {(0, False), (1, True)}
    assert max(v.spent for v in decision.verdicts if v.stage == 1) < 1e-20


def test_explain_says_what_the_gate_did(measured: Measured) -> None:
    said = as_text(explained(rewritten()), width=400)
    assert "cost gate: nothing was measured for cpu: " in said
    assert "`sdtm-fx calibrate --device cpu --dtype float32 --threads 1`, then rewrite" in said
    assert "cost gate: off in the recipe" in as_text(explained(rewritten({"gate": "off"})))
    measured(ONLY_ATTENTION)
    report = explained(rewritten())
    text = as_text(report, width=200)
    assert "cost gate: as measured for cpu: " in text
    assert "Left out by the cost gate (ms each per call)" in text
    assert "transformer_blocks.*.ff (2)" in text
    data = report.as_dict()["gate"]
    assert data["active"]
    assert {site["path"] for site in data["sites"]} == {"transformer_blocks.0.ff", "transformer_blocks.1.ff"}
    assert all(site["spent"] > site["saved"] for site in data["sites"])


def test_other_devices_and_other_dtypes_are_not_gated(measured: Measured) -> None:
    measured(COSTLY)
    model = SD3.model(torch.bfloat16)
    sdtm_fx.rewrite(model, SD3.recipe(FLAT))
    report = explained(model)
    assert not report.gate.active
    assert "bfloat16" in report.gate.says
    assert len(report.phases) > 1


def test_a_measurement_that_cannot_be_read_stops_the_rewriting(measured: Measured, tmp_path: Path) -> None:
    measured(NO_COST)
    (file,) = (tmp_path / "profiles").glob("*.json")
    file.write_text("nonsense")
    model = SD3.model()
    with pytest.raises(
        CalibrationError, match=rf"{file.name}: not JSON .*delete it, or run `sdtm-fx calibrate`"
    ):
        sdtm_fx.rewrite(model, SD3.recipe())
    sdtm_fx.rewrite(model, SD3.recipe({"gate": "off"}))
