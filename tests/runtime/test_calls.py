"""A rewritten model over a generation: who plans, who ages, what is refreshed, what is traced again."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest
import torch
from peft import LoraConfig
from torch import nn

import sdtm_fx
from sdtm_fx import load_recipe
from sdtm_fx.capture.tracer import BlockTracer
from sdtm_fx.methods import SSM, TokenView
from sdtm_fx.methods.base import Method
from sdtm_fx.plan import MergePlan
from sdtm_fx.recipe.schema import Recipe
from sdtm_fx.rewriting.rewriting import rewriting_of
from sdtm_fx.runtime.grid import ImageLayout
from sdtm_fx.runtime.runtime import Runtime
from tests.passes.blocks import FeedForward
from tests.pipelines import tiny_flux_transformer, tiny_sd3_transformer
from tests.zoo import flux_inputs, sd3_inputs

BLOCKS = 4
INPUTS = sd3_inputs(4, (4, 6), 5)


def rules(**changes: Any) -> Recipe:
    """SD3 medium, one stage of windows, all steps merged but those said."""
    return load_recipe("sd3-medium-windows").override(
        {
            "sites.*.expect": None,
            "plan.round_to": 1,
            "plan.share": [],
            "stages": [{"name": "all", "until": 1.0, "sites": ["attn", "ff"], "method": {"name": "ssm"}}],
            "ratio": {"curve": "constant", "start": 0.5},
            "keep_dense": {"first_steps": 0, "last_steps": 0, "every_steps": None},
            "reuse": None,
        },
        **changes,
    )


REUSE = {
    "reuse": {"order": 1, "weight": 0.1},
    "keep_dense": {"first_steps": 1, "last_steps": 0, "every_steps": 3},
}


@pytest.fixture(scope="module")
def model() -> nn.Module:
    return tiny_sd3_transformer(layers=BLOCKS)


@pytest.fixture
def plans(monkeypatch: pytest.MonkeyPatch) -> list[TokenView]:
    """Every request for a plan, in order."""
    seen: list[TokenView] = []
    original = Method.plan

    def spy(self: Method, view: TokenView, remove: int) -> MergePlan:
        if not view.metric.is_meta:  # the cost model asks for plans of meta tensors
            seen.append(view)
        return original(self, view, remove)

    monkeypatch.setattr(SSM, "plan", spy)
    return seen


@contextmanager
def generation(
    model: nn.Module, recipe: Recipe, steps: int = 6, **kwargs: Any
) -> Iterator[tuple[Any, Runtime]]:
    """A rewritten model in a loop of its own; restored afterwards."""
    sdtm_fx.rewrite(model, recipe)
    try:
        with torch.no_grad(), sdtm_fx.steps(model, steps, **kwargs) as clock:
            rewriting = rewriting_of(model)
            assert rewriting is not None
            yield clock, rewriting.runtime
    finally:
        sdtm_fx.restore(model)


def run(model: nn.Module, clock: Any, steps: int, inputs: dict[str, Any] = INPUTS) -> None:
    for _ in range(steps):
        model(**inputs)
        clock.advance()


# -- plans --------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("plan", "per_step", "batch"),
    [
        ({}, BLOCKS, 4),
        ({"every_layers": 2}, 2, 4),
        ({"every_layers": 3}, 2, 4),
        ({"every_layers": 99}, 1, 4),
        ({"share": ["batch"]}, BLOCKS, 1),
        ({"share": ["cfg"]}, BLOCKS, 2),
        ({"share": ["cfg"], "every_layers": 4}, 1, 2),
    ],
)
def test_plans_per_step(
    model: nn.Module, plans: list[TokenView], plan: dict[str, Any], per_step: int, batch: int
) -> None:
    with generation(model, rules(plan=plan), cfg_halves=2) as (clock, _):
        plans.clear()
        run(model, clock, 2)
    assert len(plans) == 2 * per_step
    assert {v.metric.shape[0] for v in plans} == {batch}


@pytest.mark.parametrize(("every", "expected"), [(1, 6), (2, 3), (3, 2), (4, 2), (9, 1)])
def test_plans_over_steps(model: nn.Module, plans: list[TokenView], every: int, expected: int) -> None:
    with generation(model, rules(plan={"every_steps": every})) as (clock, _):
        plans.clear()
        run(model, clock, 6)
    assert len(plans) == expected * BLOCKS


def test_guidance_halves_are_only_shared_where_they_are_said_to_be(
    model: nn.Module, plans: list[TokenView]
) -> None:
    with generation(model, rules(plan={"share": ["cfg"]})) as (clock, _):
        plans.clear()
        run(model, clock, 1)
    assert {v.metric.shape[0] for v in plans} == {4}


def test_dense_steps_plan_nothing(model: nn.Module, plans: list[TokenView]) -> None:
    keep = {"first_steps": 1, "last_steps": 1, "every_steps": 2}
    with generation(model, rules(keep_dense=keep)) as (clock, _):
        plans.clear()
        counts = []
        for _ in range(6):
            run(model, clock, 1)
            counts.append(len(plans))
    assert [b - a for a, b in zip([0, *counts], counts, strict=False)] == [0, BLOCKS, 0, BLOCKS, 0, 0]


def test_branches_plan_for_themselves(model: nn.Module, plans: list[TokenView]) -> None:
    with generation(model, rules()) as (clock, runtime):
        plans.clear()
        model(**INPUTS)
        model(**INPUTS)  # sequential guidance: a second call in the same step
        assert len(plans) == 2 * BLOCKS
        assert len(runtime.state.branches) == 2
        clock.advance()
        model(**INPUTS)
        assert len(runtime.state.branches) == 2


# -- ages ---------------------------------------------------------------------------------------------


def oldest(runtime: Runtime) -> list[int]:
    (branch, *_) = runtime.state.branches.values()
    return [int(age.max()) for _, age in sorted(branch.ages.items())]


def test_ages_count_steps(model: nn.Module) -> None:
    with generation(model, rules(ratio={"start": 0.75})) as (clock, runtime):
        for step in range(1, 4):
            run(model, clock, 1)
            assert oldest(runtime) == [step] * BLOCKS  # every window is merged at every step


def test_ages_of_the_released_form_count_calls(model: nn.Module) -> None:
    with generation(model, rules(ratio={"start": 0.75}, plan={"ages": "call"})) as (clock, runtime):
        for step in range(1, 4):
            run(model, clock, 1)
            assert oldest(runtime) == [step * BLOCKS]


def test_a_second_evaluation_of_a_step_does_not_age(model: nn.Module) -> None:
    with generation(model, rules(ratio={"start": 0.75})) as (clock, runtime):
        run(model, clock, 1)
        model(**INPUTS)
        assert oldest(runtime) == [2] * BLOCKS
        runtime._evaluation = None  # a solver's second evaluation: the same step, another evaluation
        model(**INPUTS)
        assert oldest(runtime) == [2] * BLOCKS


def test_dense_steps_and_new_generations_make_tokens_young(model: nn.Module) -> None:
    keep = {"first_steps": 1, "every_steps": 3}
    with generation(model, rules(ratio={"start": 0.75}, keep_dense=keep)) as (clock, runtime):
        run(model, clock, 3)
        assert oldest(runtime) == [2] * BLOCKS
        run(model, clock, 1)
        assert oldest(runtime) == [0] * BLOCKS
        run(model, clock, 1)
        clock.step = 0
        model(**INPUTS)
        assert oldest(runtime) == []


# -- features -----------------------------------------------------------------------------------------


def phases(
    model: nn.Module, runtime: Runtime, clock: Any, steps: int, inputs: dict[str, Any] = INPUTS
) -> list[str]:
    """D for a dense step, R for one that stores features, m for one that merges."""
    seen: list[str] = []
    handle = model.transformer_blocks[0].register_forward_pre_hook(
        lambda *_: seen.append(
            "m" if runtime.call.phase.stage is not None else "R" if runtime.call.phase.refresh else "D"
        )  # type: ignore[union-attr]
    )
    run(model, clock, steps, inputs)
    handle.remove()
    return seen


def test_dense_steps_refresh(model: nn.Module) -> None:
    with generation(model, rules(**REUSE), steps=8) as (clock, runtime):
        assert phases(model, runtime, clock, 8) == list("RmmRmmRm")
        (branch,) = runtime.state.branches.values()
        assert branch.refreshed == (6, 3)
        assert sorted(branch.features) == [(b, s) for b in range(BLOCKS) for s in ("attn", "ff")]
        assert float(branch.slope) == pytest.approx(1 / 3)  # type: ignore[arg-type]


def test_a_branch_that_missed_a_refresh_makes_up_for_it(model: nn.Module) -> None:
    with generation(model, rules(**REUSE), steps=8) as (clock, runtime):
        assert phases(model, runtime, clock, 1) == ["R"]
        clock.step = 4  # steps 1 to 3 were not run: the refresh at 3 was missed
        assert phases(model, runtime, clock, 2) == ["R", "m"]


def test_a_branch_that_starts_late_is_refreshed_first(model: nn.Module) -> None:
    with generation(model, rules(**REUSE), steps=8) as (clock, runtime):
        run(model, clock, 1)
        seen: list[bool] = []
        for _ in range(2):  # a second call from step 1 on, as skip-layer guidance makes it
            model(**INPUTS)
            model(**INPUTS)
            seen.append(runtime.state.branches[1, 4, ImageLayout((4, 6))].refreshed == (1,))
            clock.advance()
        assert seen == [True, True]


def test_a_made_up_refresh_does_not_leave_an_old_plan_behind(model: nn.Module) -> None:
    ratio = {"curve": "list", "values": [0.75, 0.75, 0.75, 0.25, 0.25, 0.25], "levels": 2}
    changes = REUSE | {
        "plan": {"every_steps": 2},
        "ratio": ratio,
        "keep_dense": {"first_steps": 2, "every_steps": None},
    }
    with generation(model, rules(**changes)) as (clock, runtime):
        run(model, clock, 3)
        model(**INPUTS)
        (branch,) = runtime.state.branches.values()
        assert {p.removed for p in branch.plans.values()} == {6}


def flux_phases(name: str, changes: dict[str, Any]) -> str:
    flux = tiny_flux_transformer(layers=1, single_layers=1)
    recipe = load_recipe(name).override({"sites.*.expect": None, "plan.round_to": 1, **changes})
    with generation(flux, recipe, steps=20) as (clock, runtime):
        return "".join(phases(flux, runtime, clock, 20, flux_inputs(1, (4, 6), 5)))


def test_a_new_stage_that_stored_other_features_is_refreshed_first() -> None:
    # With attention merged early, single blocks store both branches as one; later only the MLP's half.
    attention = {
        "stages.structure.sites": ["attn", "ff", "single_attn", "single_ff"],
        "plan.share": ["batch"],
    }
    plain, merged = flux_phases("flux.1-dev-merge", {}), flux_phases("flux.1-dev-merge", attention)
    assert plain[8] == "m"  # the first step of the second stage
    assert merged[8] == "R"
    assert merged[:8] == plain[:8]
    assert merged[9:] == plain[9:]


def test_a_stage_that_forecasts_finds_all_its_features_stored() -> None:
    assert (
        flux_phases("flux.1-dev-windows", {"keep_dense.first_steps": 2}) == "RRmRmmRmmRmmRmmRmmRR"
    )  # the second begins at step 5


def test_a_stage_that_forecasts_begins_with_two_values_of_each_feature() -> None:
    flux = tiny_flux_transformer(layers=1, single_layers=1)
    recipe = load_recipe("flux.1-dev-windows").override({"sites.*.expect": None, "plan.round_to": 1})
    with generation(flux, recipe, steps=20) as (clock, runtime):
        phases(flux, runtime, clock, 4, flux_inputs(1, (4, 6), 5))
        (branch,) = runtime.state.branches.values()
        names = {(0, "attn"), (0, "attn.0"), (0, "ff"), (1, "single_attn"), (1, "single_ff")}
        assert set(branch.features) == names
        assert branch.refreshed == (3, 2)


def test_single_blocks_with_an_adapter_serve_both_stages() -> None:
    flux = tiny_flux_transformer(layers=1, single_layers=1)
    targets = [f"single_transformer_blocks.0.{name}" for name in ("proj_out", "proj_mlp")]
    flux.add_adapter(LoraConfig(r=2, target_modules=targets, init_lora_weights=False))
    recipe = load_recipe("flux.1-dev-windows").override({"sites.*.expect": None, "plan.round_to": 1})
    with generation(flux, recipe, steps=20) as (clock, runtime):
        seen = "".join(phases(flux, runtime, clock, 20, flux_inputs(1, (4, 6), 5)))
        (branch,) = runtime.state.branches.values()
        stored = {name for _, name in branch.features}
    assert seen == "RRRRmmRmmRmmRmmRmmRR"
    assert stored == {"attn", "attn.0", "ff", "single_ff", "single_attn+single_ff"}


def test_a_site_that_only_the_later_stage_has_is_refreshed_first(model: nn.Module) -> None:
    ssm = {"name": "ssm"}
    stages = [
        {"name": "early", "until": 0.5, "sites": ["ff"], "method": ssm},
        {"name": "late", "until": 1.0, "sites": ["attn", "ff"], "method": ssm},
    ]
    with generation(model, rules(**REUSE, stages=stages), steps=10) as (clock, runtime):
        assert "".join(phases(model, runtime, clock, 10)) == "RmmRmRRmmR"


# -- what never runs ----------------------------------------------------------------------------------


def test_a_stage_that_never_runs_is_warned_of_once(
    model: nn.Module, caplog: pytest.LogCaptureFixture
) -> None:
    recipe = rules(keep_dense={"first_steps": 3, "last_steps": 0})
    with generation(model, recipe, steps=3) as (clock, _):
        for _ in range(2):
            clock.step = 0
            run(model, clock, 3)
    assert caplog.messages == [
        "sd3-medium-windows: stage 'all' runs in none of the 3 steps: keep_dense keeps all of its own, 0-2"
        " (for few steps there is sd3-medium-few)"
    ]


def test_nothing_is_warned_of_where_all_stages_run(
    model: nn.Module, caplog: pytest.LogCaptureFixture
) -> None:
    with generation(model, rules(), steps=3) as (clock, _):
        run(model, clock, 3)
    assert caplog.messages == []


# -- guards -------------------------------------------------------------------------------------------


class SizeDependent(nn.Module):
    """A block that branches on its number of tokens."""

    def __init__(self) -> None:
        super().__init__()
        self.ff = FeedForward()

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        if x.shape[1] > 30:
            return x + self.ff(x) * 2
        return x + self.ff(x)


class Toy(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.blocks = nn.ModuleList([SizeDependent(), SizeDependent()])

    def forward(self, latent: torch.Tensor, timestep: torch.Tensor) -> torch.Tensor:
        x = latent.flatten(2).mT
        for block in self.blocks:
            x = block(x)
        return x


TOY = {
    "version": 1,
    "name": "toy",
    "model": ["Toy"],
    "tokens": {"grid": {"latent": "latent", "patch": 1}},
    "inputs": {"latent": ["batch", 8, "height", "width"], "timestep": ["batch"]},
    "sites": [{"id": "ff", "kind": "feed_forward", "match": "blocks.*.ff"}],
    "stages": [{"name": "all", "until": 1.0, "sites": ["ff"], "method": {"name": "ssm"}}],
    "ratio": {"curve": "constant", "start": 0.5},
    "keep_dense": {"first_steps": 1, "last_steps": 0, "every_steps": 2},
    "reuse": {"order": 0, "weight": 0.0},
    "plan": {"round_to": 1},
}


def toy_call(grid: tuple[int, int]) -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(grid[0])
    return {"latent": torch.randn(2, 8, *grid, generator=generator), "timestep": torch.ones(2)}


def test_another_side_of_a_branch_is_traced_when_it_appears(monkeypatch: pytest.MonkeyPatch) -> None:
    toy = Toy()
    traces: list[str] = []
    capture = BlockTracer.capture
    monkeypatch.setattr(
        BlockTracer, "capture", lambda self, m, *a: (traces.append(type(m).__name__), capture(self, m, *a))[1]
    )
    with generation(toy, Recipe.from_mapping(TOY)) as (clock, runtime):
        for grid, expected in (((8, 6), 0), ((4, 6), 2), ((4, 4), 0)):
            clock.step = 0
            call = toy_call(grid)
            dense = call["latent"].flatten(2).mT
            for block in toy.blocks:
                dense = SizeDependent.forward(block, dense)
            traces.clear()
            torch.testing.assert_close(toy(**call), dense, rtol=0, atol=0)  # refreshes
            clock.advance()
            # Weight 0: every merged position takes what was stored, which is the dense value.
            torch.testing.assert_close(toy(**call), dense, rtol=1e-5, atol=1e-5)
            assert traces.count("SizeDependent") == expected
        assert runtime.call is None


# -- the call itself ----------------------------------------------------------------------------------


def test_the_salt_depends_on_seed_and_step(model: nn.Module) -> None:
    salts: dict[int, list[int]] = {}
    for seed in (0, 1):
        with generation(model, rules(seed=seed)) as (clock, runtime):
            handle = model.transformer_blocks[0].register_forward_pre_hook(
                lambda *_, seed=seed, runtime=runtime: salts.setdefault(seed, []).append(
                    int(runtime.call.salt)
                )
            )
            run(model, clock, 3)
            handle.remove()
    assert len({*salts[0], *salts[1]}) == 6


def test_the_prompt_weight_goes_from_start_to_end(model: nn.Module) -> None:
    weights: list[float] = []
    with generation(model, rules(prompt={"start": 2.0, "end": 1.0}), steps=5) as (clock, runtime):
        handle = model.transformer_blocks[0].register_forward_pre_hook(
            lambda *_: weights.append(float(runtime.call.prompt_bias.exp()))  # type: ignore[union-attr]
        )
        run(model, clock, 5)
        handle.remove()
    assert weights == pytest.approx([2.0, 1.75, 1.5, 1.25, 1.0])


@pytest.mark.parametrize(("threshold", "phases_seen"), [(-1.0, "Dmmmmm"), (1.9, "DDDDDD")])
def test_a_threshold_decides_from_what_the_step_before_counted(
    model: nn.Module, threshold: float, phases_seen: str
) -> None:
    data = rules().to_data() | {"ratio": {"threshold": threshold, "start": 0.7, "end": 0.0, "levels": 3}}
    with generation(model, Recipe.from_mapping(data)) as (clock, runtime):
        assert "".join(phases(model, runtime, clock, 6)) == phases_seen
