"""A merged run has the right number of tokens at every site, seen by hooks on the modules themselves."""

from __future__ import annotations

import itertools
from collections import defaultdict
from typing import Any

import pytest
import torch
from torch import nn

import sdtm_fx
from sdtm_fx.recipe.match import compile_match
from tests.user.cases import (
    FLUX_ATTENTION,
    FLUX_DEV,
    SD3,
    Case,
    moving,
    observed_inputs,
    run_plain,
    run_steps,
    the_rewriting,
)

SIZES: list[dict[str, Any]] = [
    {"batch": 1, "grid": (8, 8)},
    {"batch": 4, "grid": (12, 8), "text": 9},  # 3:2
    {"batch": 2, "grid": (33, 47)},
]


def test_every_site_sees_the_tokens_that_the_schedule_keeps(case: Case) -> None:
    model = sdtm_fx.rewrite(case.model(), case.recipe())
    for size in SIZES:
        assert check_counts(model, case.inputs(**size), size["grid"], 6) >= 2


@pytest.mark.parametrize("method", ["local_match", "fidm", "tome"])
def test_other_methods_keep_what_the_schedule_says(method: str) -> None:
    model, inputs = SD3.model(), SD3.inputs(grid=(8, 6))
    recipe = SD3.recipe(
        {"stages.detail.method": {"name": method}, "stages.structure.until": 0.2, "reuse": None}
    )
    sdtm_fx.rewrite(model, recipe)
    assert check_counts(model, inputs, (8, 6), 5) >= 2


def test_idm_reads_attention_and_merges_the_feed_forward() -> None:
    model, inputs = SD3.model(), SD3.inputs(grid=(8, 6))
    recipe = {"stages.detail.method": {"name": "idm"}, "stages.structure.until": 0.2, "reuse": None}
    sdtm_fx.rewrite(model, SD3.recipe(recipe))
    schedule = the_rewriting(model).runtime.schedule(5, (8, 6), text=5)
    # The attention of a scored block runs as a graph of its own; the feed-forward is still a module.
    seen = [lengths["ff"] for lengths in site_lengths(model, inputs, 5)]
    assert seen == [{(2, 48 - schedule.phase(step).remove)} for step in range(5)]


def test_a_change_of_stage_refreshes_what_the_next_stage_reads() -> None:
    model = FLUX_ATTENTION.model()
    sdtm_fx.rewrite(model, FLUX_ATTENTION.recipe())
    # In the first stage single blocks store attention and feed-forward as one; the second needs one of them.
    for count in range(4, 13):
        schedule = the_rewriting(model).runtime.schedule(count, (8, 8), text=5)
        stages = [schedule.phase(step).stage for step in range(count)]
        assert all((a, b) != (0, 1) for a, b in itertools.pairwise(stages)), (count, stages)
        outputs = run_steps(model, FLUX_ATTENTION.inputs(), count)
        assert all(bool(out.isfinite().all()) for out in outputs)


def test_a_skipped_stage_does_not_call_its_sites() -> None:
    model, inputs = FLUX_DEV.model(), FLUX_DEV.inputs()
    sdtm_fx.rewrite(model, FLUX_DEV.recipe({"stages.*.method": {"name": "skip"}}))
    with sdtm_fx.steps(model, 6) as clock:
        for step in range(6):
            phase = the_rewriting(model).runtime.schedule(6, (8, 8), text=5).phase(step)
            with observed_inputs(model, ".proj_mlp") as seen:
                model(**moving(inputs, step, 6))
            assert bool(seen) == (phase.stage is None)
            clock.advance()


def test_merging_changes_the_output_on_merged_steps_only(case: Case) -> None:
    model, inputs = case.model(), case.inputs()
    plain = run_plain(model, inputs, 6)
    sdtm_fx.rewrite(model, case.recipe({"reuse": None}))
    merged = run_steps(model, inputs, 6)
    schedule = the_rewriting(model).runtime.schedule(6, (8, 8), text=5)
    changed = [not torch.equal(a, b) for a, b in zip(plain, merged, strict=True)]
    assert changed == [schedule.phase(step).stage is not None for step in range(6)]
    assert any(changed)
    assert not all(changed)


def check_counts(model: nn.Module, inputs: dict[str, Any], grid: tuple[int, int], count: int) -> int:
    """Compare the length that each site sees with the schedule, step by step; returns the merged steps."""
    rewriting = the_rewriting(model)
    tokens, text = grid[0] * grid[1], inputs["encoder_hidden_states"].shape[1]
    merged_steps = 0
    for step, lengths in enumerate(site_lengths(model, inputs, count)):
        phase = rewriting.runtime.schedule(count, grid, text).phase(step)
        active = rewriting.recipe.stages[phase.stage].sites if phase.stage is not None else ()
        for spec in rewriting.recipe.sites:
            kept = tokens - (phase.remove if spec.id in active else 0)
            # Single blocks of FLUX have the text in front.
            expected = kept + (text if spec.prefix is not None else 0)
            assert lengths[spec.id] == {(inputs["hidden_states"].shape[0], expected)}, (spec.id, step)
        merged_steps += phase.stage is not None and phase.remove > 0
    return merged_steps


def site_lengths(
    model: nn.Module, inputs: dict[str, Any], count: int
) -> list[dict[str, set[tuple[int, int]]]]:
    """For every step and site: (batch, length) of what its modules were given."""
    specs = the_rewriting(model).recipe.sites
    current: dict[str, set[tuple[int, int]]] = defaultdict(set)

    def note(site: str) -> Any:
        def hook(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
            value = args[0] if args else kwargs["hidden_states"]
            if type(value) is torch.Tensor:  # not while tracing
                current[site].add((value.shape[0], value.shape[1]))

        return hook

    handles: list[Any] = []
    for spec in specs:
        accepts = compile_match(spec.match)
        handles += [
            module.register_forward_pre_hook(note(spec.id), with_kwargs=True)
            for path, module in model.named_modules()
            if accepts(path)
        ]
    steps = []
    with sdtm_fx.steps(model, count) as clock:
        for step in range(count):
            current.clear()
            model(**moving(inputs, step, count))
            steps.append(dict(current))
            clock.advance()
    for handle in handles:
        handle.remove()
    return steps
