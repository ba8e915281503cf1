"""Merging inside of spans on real models: the same numbers as by hand, and all promises of the house."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

import pytest
import torch
from torch import nn

import sdtm_fx
from sdtm_fx.base_plan import Plan
from sdtm_fx.cost.counter import MacCounter
from sdtm_fx.errors import ScheduleError, SiteError
from sdtm_fx.plan import MergePlan
from sdtm_fx.stacking import composed
from tests.compiling.conftest import _fresh_compiler as _fresh_compiler
from tests.compiling.counting import Graphs, graph_breaks, no_new_graph, phases_of
from tests.spans.cases import GRID, KEPT, KINDS, SPAN, TOKENS, Kind, by_hand, flux, recipe, sd3
from tests.user.cases import (
    FLUX_DEV,
    SD3,
    all_equal,
    module_state,
    moving,
    observed_inputs,
    run_plain,
    run_steps,
)

STEPS = 3  # the first and the last are dense
TOME = {"name": "tome", "window": [1, 2], "random": False}
FURTHER = 10
LEFT = KEPT - FURTHER
INSIDE = {"sites": ["attn", "ff"], "method": TOME, "ratio": FURTHER / KEPT}
FLUX_INSIDE = {**INSIDE, "sites": ["attn", "single_ff"]}


def stacked_recipe(kind: Kind, inside: Any = None, **changes: Any) -> sdtm_fx.Recipe:
    chosen = inside or (INSIDE if kind.case is SD3 else FLUX_INSIDE)
    both = {f"stages.{name}.inside": chosen for name in ("structure", "detail")}
    return recipe(kind.case, changes.pop("span", kind.span), **both, **changes)


EVERY_KIND = pytest.mark.parametrize(
    "kind", [pytest.param(KINDS[0], marks=pytest.mark.slow), KINDS[1]], ids=["sd3", "flux"]
)


@contextmanager
def inside_by_hand(blocks: list[nn.Module], span: list[Plan]) -> Iterator[None]:
    """Attention and feed-forward of SD3 blocks on fewer slots of a span, found by what reaches attention."""
    with ExitStack() as stack:
        for block in blocks:
            plans: list[MergePlan] = []

            def fewer(x: torch.Tensor, plans: list[MergePlan] = plans) -> torch.Tensor:
                (outer,) = span
                assert isinstance(outer, MergePlan)
                if not plans:
                    options = {key: value for key, value in TOME.items() if key != "name"}
                    inner = sdtm_fx.plan_merge(
                        "tome", x.mean(0, keepdim=True), grid=(1, KEPT), remove=FURTHER, **options
                    )
                    assert isinstance(inner, MergePlan)
                    plans.append(inner)
                return composed(outer, plans[0]).merge(outer.unmerge(x))

            def before_attention(m: Any, args: Any, kwargs: Any, fewer: Any = fewer) -> Any:
                return args, {**kwargs, "hidden_states": fewer(kwargs["hidden_states"])}

            def behind_attention(m: Any, args: Any, output: Any, plans: Any = plans) -> Any:
                return plans[0].unmerge(output[0]), *output[1:]

            def before_feed_forward(m: Any, args: Any, fewer: Any = fewer) -> Any:
                return (fewer(args[0]), *args[1:])

            def behind_feed_forward(m: Any, args: Any, output: Any, plans: Any = plans) -> Any:
                return plans.pop().unmerge(output)

            for handle in (
                block.attn.register_forward_pre_hook(before_attention, with_kwargs=True),
                block.attn.register_forward_hook(behind_attention),
                block.ff.register_forward_pre_hook(before_feed_forward),
                block.ff.register_forward_hook(behind_feed_forward),
            ):
                stack.callback(handle.remove)
        yield


@pytest.mark.parametrize("enter", ["start", pytest.param("end", marks=pytest.mark.slow)])
def test_merging_inside_is_what_it_is_by_hand(enter: str) -> None:
    kind, model, inputs = KINDS[0], sd3(), SD3.inputs()
    before, dense = module_state(model), run_plain(model, inputs, STEPS)
    blocks, first = kind.blocks(model), 1 if enter == "start" else 0
    with (
        by_hand(blocks, first, 2, enter=enter, residual="dense") as plans,
        inside_by_hand(blocks[1:3], plans),
    ):
        expected = run_plain(model, inputs, STEPS)[1]
    span = {**SPAN, "first": first, "enter": enter}
    sdtm_fx.rewrite(model, recipe(SD3, span))
    alone = run_steps(model, inputs, STEPS)[1]
    sdtm_fx.rewrite(model, stacked_recipe(kind, span=span))
    with observed_inputs(model, "ff") as seen:
        found = run_steps(model, inputs, STEPS)
    assert [shape[1] for _, shape in seen][4:8] == [TOKENS, LEFT, LEFT, TOKENS]
    torch.testing.assert_close(found[1], expected, atol=2e-5, rtol=2e-5)
    assert (found[1] - alone).abs().max() > 1e-3
    assert torch.equal(found[0], dense[0]) and torch.equal(found[2], dense[2])  # noqa: PT018
    sdtm_fx.restore(model)
    assert module_state(model) == before
    assert all_equal(run_plain(model, inputs, STEPS), dense)


@EVERY_KIND
def test_ratio_zero_inside_is_the_span_alone(kind: Kind) -> None:
    model, inputs = kind.model(), kind.case.inputs()
    sdtm_fx.rewrite(model, recipe(kind.case, kind.span))
    alone = run_steps(model, inputs, STEPS)
    inside = {**FLUX_INSIDE, "ratio": 0.0} if kind.case is FLUX_DEV else {**INSIDE, "ratio": 0.0}
    sdtm_fx.rewrite(model, stacked_recipe(kind, inside))
    assert all_equal(run_steps(model, inputs, STEPS), alone)


@EVERY_KIND
def test_the_cost_model_counts_what_runs_inside(kind: Kind) -> None:
    model, inputs = kind.model(), kind.case.inputs()
    rules = stacked_recipe(kind)
    sdtm_fx.rewrite(model, rules)
    told = sdtm_fx.explain(model, steps=STEPS, grid=GRID, batch=2, text=5, quiet=True)
    run_steps(model, inputs, STEPS)  # structures of calls that are new are traced here, which counts too
    (phase,) = [p for p in told.phases if 1 in p.steps]
    with torch.no_grad(), sdtm_fx.steps(model, STEPS) as clock, MacCounter() as counter:
        clock.step = 1
        model(**moving(inputs, 1, STEPS))
    assert counter.macs.linear == pytest.approx(phase.macs.linear, rel=1e-9)
    assert counter.macs.total == pytest.approx(phase.macs.total, rel=1e-9)
    short = {s.path: s for s in told.sites if s.phase == told.phases.index(phase) and s.skipped is None}
    sites = [s for s in short.values() if s.site in rules.stages[0].inside.sites]  # type: ignore[union-attr]
    assert {s.tokens_after for s in sites} == {LEFT}
    assert {s.tokens_after for s in short.values()} - {LEFT} == ({KEPT} if kind.case is FLUX_DEV else set())
    for site in sites:
        assert site.macs_after is not None
        assert site.macs_after.total < site.macs_before.total * (LEFT + 5) / TOKENS


@EVERY_KIND
def test_recorded_plans_go_from_tokens_to_the_last_slots(kind: Kind) -> None:
    model = kind.model()
    sdtm_fx.rewrite(model, stacked_recipe(kind))
    with sdtm_fx.record_plans(model) as record:
        run_steps(model, kind.case.inputs(), STEPS)
    inside = (INSIDE if kind.case is SD3 else FLUX_INSIDE)["sites"]
    merged = record.at(step=1, action="merged")
    assert {(site.kept == LEFT) == (site.site in inside) for site in merged} == {True}
    two = next(site for site in merged if site.kept == LEFT)
    assert two.assign is not None and two.positions is not None  # noqa: PT018
    assert two.assign.shape == (2, TOKENS)
    assert torch.equal(two.assign.gather(1, two.positions.long()), torch.arange(LEFT).int().expand(2, -1))
    assert two.sizes is not None
    assert two.sizes.sum(1).tolist() == [TOKENS] * 2
    assert int(two.sizes.min()) >= 1


@pytest.mark.parametrize(
    ("changes", "plans"),
    [({"plan.every_layers": 4}, 1), pytest.param({"plan.share": ["cfg"]}, 2, marks=pytest.mark.slow)],
)
def test_blocks_of_a_group_share_the_plan_inside(changes: dict[str, Any], plans: int) -> None:
    model = sd3()
    sdtm_fx.rewrite(model, stacked_recipe(KINDS[0], **changes))
    with sdtm_fx.record_plans(model) as record:
        run_steps(model, SD3.inputs(), STEPS)
    found = {
        tuple(s.assign[0].tolist()) for s in record.at(step=1) if s.kept == LEFT and s.assign is not None
    }
    assert len(found) == plans


@pytest.mark.slow
def test_proportional_attention_reaches_all_attention_of_a_span() -> None:
    model, inputs = sd3(), SD3.inputs()
    outputs = []
    for changes in ({}, {"plan.proportional": True}):
        sdtm_fx.rewrite(model, stacked_recipe(KINDS[0], {**INSIDE, "sites": ["ff"]}, **changes))
        outputs.append(run_steps(model, inputs, STEPS)[1])
    assert (outputs[0] - outputs[1]).abs().max() > 1e-4
    assert bool(outputs[1].isfinite().all())


def test_sites_may_merge_outside_of_the_span_too() -> None:
    model = sd3(layers=3)
    rules = stacked_recipe(KINDS[0], {**INSIDE, "sites": ["ff"]}).override({"stages.*.sites": ["body", "ff"]})
    sdtm_fx.rewrite(model, rules)
    with observed_inputs(model, "ff") as seen:
        run_steps(model, SD3.inputs(), STEPS)
    assert [shape[1] for _, shape in seen][3:6] == [KEPT, LEFT, KEPT]


@pytest.mark.parametrize(
    ("span", "changes", "message"),
    [
        (
            SPAN,
            {"stages.detail.sites": ["body", "attn"], "stages.detail.inside": {**INSIDE, "sites": ["ff"]}},
            "stage 'detail': site 'attn' lies in transformer_blocks.1, which span 'body' covers; what merges the slots "
            "of a span further is said by `inside`",
        ),
        (
            {**SPAN, "first": 0, "last": 1, "enter": "end"},
            {"stages.detail.sites": ["body", "attn"]},
            "site 'attn' lies in transformer_blocks.0, which span 'body' covers; the block merges its tokens once, for "
            "the span that begins at its end",
        ),
        (
            {**SPAN, "first": 1, "last": 1},
            {"sites": [{"id": "attn", "kind": "attention", "match": "transformer_blocks.0.attn", "output": 0,
                        "input": "hidden_states"},
                       {"id": "ff", "kind": "feed_forward", "match": "transformer_blocks.*.ff"}]},
            "stage 'structure': inside: site 'attn' lies in no block that runs on the slots of a span of this stage",
        ),
    ],
)  # fmt: skip
def test_sites_that_do_not_lie_there_are_named(span: Any, changes: dict[str, Any], message: str) -> None:
    model = sd3()
    before = module_state(model)
    with pytest.raises(SiteError, match=message):
        sdtm_fx.rewrite(model, stacked_recipe(KINDS[0], span=span).override(changes))
    assert module_state(model) == before


def test_a_count_out_of_reach_is_named() -> None:
    model = sd3(layers=2)
    method = {**TOME, "window": [1, 60]}
    rules = stacked_recipe(
        KINDS[0], {**INSIDE, "method": method, "ratio": 0.5}, span={**SPAN, "first": 0, "last": 0}
    )
    sdtm_fx.rewrite(model, rules)
    inputs = SD3.inputs(grid=(6, 6))  # what is kept of 36 tokens has no such cell
    with pytest.raises(
        ScheduleError,
        match=r"stage '\w+': inside: found ratio 0.5 of \d+ slots; tome can remove at most 0 of them",
    ):
        run_steps(model, inputs, STEPS)


@pytest.mark.slow
@pytest.mark.compile
@pytest.mark.parametrize("regional", [False, True], ids=["whole", "regional"])
@pytest.mark.parametrize("kind", KINDS, ids=["sd3", "flux"])
def test_it_compiles_as_one_graph(kind: Kind, regional: bool) -> None:
    model, inputs = kind.model(), kind.case.inputs()
    sdtm_fx.rewrite(model, stacked_recipe(kind))
    eager = run_steps(model, inputs, STEPS)
    sdtm_fx.compile(model, regional=regional, backend="eager")
    graphs = Graphs()
    assert all_equal(run_steps(model, inputs, STEPS), eager)
    assert not graph_breaks()
    if not regional:
        assert graphs.made == phases_of(model, STEPS)
    with no_new_graph():
        assert all_equal(run_steps(model, inputs, STEPS), eager)


def test_rotary_tables_have_to_be_named_as_ever() -> None:
    model = flux()
    with pytest.raises(
        SiteError, match=r"does not run on fewer image tokens.*name their argument with `rotary`"
    ):
        sdtm_fx.rewrite(model, stacked_recipe(KINDS[1], span={**KINDS[1].span, "rotary": None}))
