"""Spans on real models: the same numbers as a span written by hand, and all promises of the house."""

from __future__ import annotations

from typing import Any

import pytest
import torch

import sdtm_fx
from sdtm_fx.cost.counter import MacCounter
from sdtm_fx.errors import PlanError
from tests.spans.cases import (
    FLUX_SPAN,
    GRID,
    KEPT,
    KINDS,
    SPAN,
    SSM,
    TOKENS,
    TOMA,
    Kind,
    by_hand,
    flux,
    recipe,
    sd3,
)
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

EVERY_KIND = pytest.mark.parametrize("kind", KINDS, ids=["sd3", "flux"])
STEPS = 4  # the first and the last are dense


@EVERY_KIND
@pytest.mark.parametrize(
    ("enter", "residual", "method"),
    [
        ("start", "dense", SSM),
        ("end", "merged", SSM),
        ("start", "merged", SSM),
        ("end", "dense", SSM),
        ("start", "dense", TOMA),
        ("end", "merged", {**TOMA, "unmerge": "pseudo_inverse"}),
    ],
)
def test_a_span_is_what_it_is_by_hand(kind: Kind, enter: str, residual: str, method: dict[str, Any]) -> None:
    model, inputs = kind.model(), kind.case.inputs()
    before, dense = module_state(model), run_plain(model, inputs, STEPS)
    blocks = kind.blocks(model)
    first, last = (1, len(blocks) - 2) if enter == "start" else (0, len(blocks) - 1)
    with by_hand(blocks, first, last, enter=enter, residual=residual, method=method):
        expected = run_plain(model, inputs, STEPS)
    span = {**kind.span, "first": first, "last": last, "enter": enter, "residual": residual}
    sdtm_fx.rewrite(model, recipe(kind.case, span, method=method))
    found = run_steps(model, inputs, STEPS)
    for step in range(STEPS):
        if step in (0, STEPS - 1):
            assert torch.equal(found[step], dense[step])
        else:
            torch.testing.assert_close(found[step], expected[step], atol=2e-5, rtol=2e-5)
            assert (found[step] - dense[step]).abs().max() > 1e-3
    sdtm_fx.restore(model)
    assert module_state(model) == before
    assert all_equal(run_plain(model, inputs, STEPS), dense)


@pytest.mark.parametrize(
    ("span", "lengths"),
    [
        ({"first": 0, "last": 3}, [KEPT] * 4),
        ({"first": "transformer_blocks.1", "last": "transformer_blocks.2"}, [TOKENS, KEPT, KEPT, TOKENS]),
        ({"first": 0, "last": -1, "enter": "end"}, [TOKENS, KEPT, KEPT, KEPT]),
        ({"first": "transformer_blocks.*", "last": "transformer_blocks.*"}, [KEPT] * 4),
        (
            {"first": r"re:.*\.(0|2)", "last": r"re:.*\.(1|3)", "enter": "end"},
            [TOKENS, KEPT, TOKENS, KEPT],
        ),
    ],
    ids=["whole", "middle", "end", "once per block", "groups"],
)
def test_blocks_run_on_as_many_tokens_as_the_span_says(span: dict[str, Any], lengths: list[int]) -> None:
    model, inputs = sd3(), SD3.inputs()
    sdtm_fx.rewrite(model, recipe(SD3, {**SPAN, **span}))
    with observed_inputs(model, "attn") as attention, observed_inputs(model, "ff") as feed_forward:
        outputs = run_steps(model, inputs, 3)
    assert [shape[1] for _, shape in attention][4:8] == lengths
    assert [shape[1] for _, shape in feed_forward if "context" not in _][4:8] == lengths
    assert outputs[1].shape == inputs["hidden_states"].shape


@EVERY_KIND
def test_ratio_zero_is_the_model_itself(kind: Kind) -> None:
    model, inputs = kind.model(), kind.case.inputs()
    dense = run_plain(model, inputs, STEPS)
    sdtm_fx.rewrite(model, recipe(kind.case, kind.span, ratio={"curve": "constant", "start": 0.0}))
    assert all_equal(run_steps(model, inputs, STEPS), dense)


@EVERY_KIND
@pytest.mark.parametrize(
    ("ends", "method"),
    [
        ({}, SSM),
        ({"enter": "end"}, SSM),
        ({"last": 1}, SSM),
        ({}, TOMA),
        ({"enter": "end", "residual": "merged"}, TOMA),
    ],
    ids=["start", "end", "one block", "linear", "linear, merged"],
)
def test_the_cost_model_counts_what_runs(kind: Kind, ends: dict[str, Any], method: dict[str, Any]) -> None:
    model, inputs = kind.model(), kind.case.inputs()
    rules = recipe(kind.case, {**kind.span, **ends}, method=method)
    sdtm_fx.rewrite(model, rules)
    told = sdtm_fx.explain(model, steps=STEPS, grid=GRID, batch=2, text=5, quiet=True)
    run_steps(model, inputs, STEPS)  # structures of calls that are new are traced here, which counts too
    with torch.no_grad(), sdtm_fx.steps(model, STEPS) as clock:
        for step in range(STEPS):
            (phase,) = [p for p in told.phases if step in p.steps]
            with MacCounter() as counter:
                model(**moving(inputs, step, STEPS))
            assert counter.macs.linear == pytest.approx(phase.macs.linear, rel=1e-9)
            # Choosing destinations is no product, which is what is counted here.
            search = rules.stages[0].method.search_macs(GRID, phase.removed) if phase.removed else 0.0
            assert counter.macs.total + search == pytest.approx(phase.macs.total, rel=1e-9)
            clock.advance()
    assert told.theoretical_speedup > 1.05


def test_a_smaller_batch_and_another_grid_need_nothing_new() -> None:
    model = sd3()
    sdtm_fx.rewrite(model, recipe(SD3, SPAN))
    for batch, grid, text in ((1, (6, 10), 7), (3, (5, 7), 3)):
        inputs = SD3.inputs(batch=batch, grid=grid, text=text)
        assert all(bool(out.isfinite().all()) for out in run_steps(model, inputs, STEPS))


def test_low_precision_stays_low() -> None:
    model = sd3().to(torch.bfloat16)
    sdtm_fx.rewrite(model, recipe(SD3, SPAN))
    assert run_steps(model, SD3.inputs(dtype=torch.bfloat16), STEPS)[1].dtype == torch.bfloat16


@pytest.mark.parametrize(
    "changes", [{"plan.every_steps": 2}, {"plan.every_layers": 4}, {"plan.share": ["cfg"]}]
)
def test_plans_are_kept_and_shared_as_elsewhere(changes: dict[str, Any]) -> None:
    model, inputs = sd3(), SD3.inputs()
    once = {**SPAN, "first": "transformer_blocks.*", "last": "transformer_blocks.*"}
    sdtm_fx.rewrite(model, recipe(SD3, once, **changes))
    with sdtm_fx.record_plans(model) as record:
        run_steps(model, inputs, 6)
    plans = {
        (site.step, site.block): site.assign
        for site in record.at(kind="attention")
        if site.assign is not None
    }
    assert {site.kept for site in record.at(action="merged")} == {KEPT}
    assert len(plans) == 4 * 4
    one, other = plans[1, "transformer_blocks.0"], plans[1, "transformer_blocks.3"]
    assert torch.equal(one, other) == ("plan.every_layers" in changes)
    if "plan.every_layers" not in changes:  # the plan of the first block does not move with the steps here
        kept = torch.equal(plans[2, "transformer_blocks.3"], plans[3, "transformer_blocks.3"])
        assert kept == ("plan.every_steps" in changes)


def test_recorded_plans_are_those_of_the_entry() -> None:
    model = sd3()
    sdtm_fx.rewrite(model, recipe(SD3, {**SPAN, "enter": "end", "first": 0}))
    with sdtm_fx.record_plans(model) as record:
        run_steps(model, SD3.inputs(), 3)
    actions = [site.action for site in record.at(step=1, kind="attention")]
    assert actions == ["dense", "merged", "merged", "dense"]
    inside = record.at(step=1, action="merged")
    assert all(torch.equal(site.assign, inside[0].assign) for site in inside)


def test_lora_and_restore_inside_a_generation() -> None:
    model, inputs = sd3(), SD3.inputs()
    dense = run_plain(model, inputs, STEPS)
    sdtm_fx.rewrite(model, recipe(SD3, SPAN))
    first = run_steps(model, inputs, STEPS)
    with torch.no_grad():
        for name, weight in model.named_parameters():
            if "transformer_blocks.2.ff.net.2.weight" in name:
                weight.mul_(1.5)
    assert not torch.equal(run_steps(model, inputs, STEPS)[1], first[1])  # the block's own weights run
    sdtm_fx.restore(model)
    assert not torch.equal(run_plain(model, inputs, STEPS)[1], dense[1])


def test_residuals_between_the_blocks_are_named() -> None:
    model, inputs = sd3(), SD3.inputs()
    extra = {"block_controlnet_hidden_states": [torch.full((2, TOKENS, 16), 0.1)] * 4}
    sdtm_fx.rewrite(model, recipe(SD3, SPAN))
    message = (
        "span 'body' keeps 34 of 64 image tokens between its blocks, and SD3Transformer2DModel needs all of them .*"
        "ControlNet residuals bear spans of one block only"
    )
    with pytest.raises(PlanError, match=message):
        run_steps(model, {**inputs, **extra}, 3)
    assert len(run_steps(model, inputs, 3)) == 3  # nothing is left of the call that failed
    once = {**SPAN, "first": "transformer_blocks.*", "last": "transformer_blocks.*"}
    sdtm_fx.rewrite(model, recipe(SD3, once))  # between spans of one block the stream has full length
    assert len(run_steps(model, {**inputs, **extra}, 3)) == 3


@pytest.mark.parametrize(
    ("skipped", "message"),
    [
        (1, "block 2 is inside span 'body', but the block that begins it has not run in this call"),
        (2, "span 'body' keeps 34 of 64 image tokens .* or leaves out the block that ends the span"),
    ],
)
def test_blocks_that_are_left_out_are_named(skipped: int, message: str) -> None:
    model = sd3(layers=3 if skipped == 2 else 4)
    sdtm_fx.rewrite(model, recipe(SD3, {**SPAN, "last": 2}))
    with pytest.raises(PlanError, match=message):
        run_steps(model, {**SD3.inputs(), "skip_layers": [skipped]}, 3)


def test_a_span_that_is_not_left_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    model = flux()
    sdtm_fx.rewrite(model, recipe(FLUX_DEV, {**FLUX_SPAN, "last": -1}))

    def leave_out(hidden_states: Any, encoder_hidden_states: Any, **_: Any) -> Any:
        return (
            encoder_hidden_states,
            hidden_states,
        )  # what a cache may do; FLUX reshapes nothing behind its blocks

    monkeypatch.setitem(model.single_transformer_blocks[1].__dict__, "forward", leave_out)
    with pytest.raises(PlanError, match="the block that ends span 'body' has not run in this call"):
        run_steps(model, FLUX_DEV.inputs(), 3)


def test_errors_of_others_stay_their_own() -> None:
    model, inputs = sd3(), SD3.inputs()
    sdtm_fx.rewrite(model, recipe(SD3, SPAN))

    def fail(*_: Any) -> None:
        raise RuntimeError("mine")

    handle = model.transformer_blocks[2].register_forward_pre_hook(fail)
    with pytest.raises(RuntimeError, match="mine"):
        run_steps(model, inputs, 3)
    handle.remove()


def test_explain_lists_spans() -> None:
    model = flux()
    sdtm_fx.rewrite(model, recipe(FLUX_DEV, {**FLUX_SPAN, "first": 0, "enter": "end"}))
    told = sdtm_fx.explain(model, steps=STEPS, grid=GRID, batch=2, text=5, quiet=True)
    assert {span.phase for span in told.spans} == {1, 2}
    span = told.spans[0]
    assert (span.first, span.last) == ("transformer_blocks.0", "single_transformer_blocks.0")
    assert (span.enter, span.residual, span.blocks) == ("end", "dense", 2)
    assert (span.tokens_before, span.tokens_after) == (TOKENS, KEPT)
    merged = [site.path for site in told.sites if site.phase == 1 and site.skipped is None]
    assert merged == [
        "transformer_blocks.1.attn", "transformer_blocks.1.ff",
        "single_transformer_blocks.0.attn", "single_transformer_blocks.0.proj_mlp",
    ]  # fmt: skip
    inside = [site for site in told.sites if site.path in merged and site.phase == 1]
    assert all(site.tokens_after == KEPT and site.macs_after is not None for site in inside)
    assert all(site.macs_after.total < site.macs_before.total for site in inside)  # type: ignore[union-attr]
    assert told.as_dict()["spans"][0]["span"] == "body"
    assert "nothing was measured" in told.gate.says


def test_explain_prints_spans(capsys: pytest.CaptureFixture[str]) -> None:
    model = sd3()
    sdtm_fx.rewrite(model, recipe(SD3, SPAN))
    sdtm_fx.explain(model, steps=STEPS, grid=GRID, batch=2, text=5)
    printed = capsys.readouterr().out
    assert "Spans: merged once, or forecast as one" in printed
    assert "64 -> 34" in printed
    assert "transformer_blocks.*.attn (2) not merged: not a site of stage structure" in " ".join(
        printed.split()
    )
