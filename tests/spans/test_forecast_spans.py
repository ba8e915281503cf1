"""Spans that are forecast: no block runs, one feature is held, and the numbers are those of forecasts site by site."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn

import sdtm_fx
from sdtm_fx.cost.counter import MacCounter
from sdtm_fx.errors import PlanError, SiteError
from tests.spans.cases import KINDS, SPAN, Kind, sd3
from tests.user.cases import (
    SD3,
    all_equal,
    module_state,
    moving,
    observed_inputs,
    run_plain,
    run_steps,
    the_rewriting,
)

EVERY_KIND = pytest.mark.parametrize("kind", KINDS, ids=["sd3", "flux"])
STEPS = 6  # 0, 1, 3 and 5 are dense
DENSE = (0, 1, 3, 5)
WHOLE = {**SPAN, "first": 0, "last": -1}
SITES = {"sd3": ["attn", "ff"], "flux": ["attn", "ff", "single_attn", "single_ff"]}


def forecasting(kind: Kind, *names: str, span: dict[str, Any] = WHOLE, order: int = 1) -> sdtm_fx.Recipe:
    """One stage that forecasts spans or sites."""
    return kind.case.recipe().override(
        spans=[span],
        stages=[{"name": "all", "until": 1.0, "sites": list(names), "method": {"name": "skip"}}],
        ratio={"curve": "full"},
        reuse={"order": order, "weight": 0.0},
        keep_dense={"first_steps": 2, "last_steps": 1, "every_steps": 3, "steps": []},
    )


def line(values: list[tuple[int, torch.Tensor]], step: int) -> torch.Tensor:
    (older, y2), (newer, y1) = values[-2:]
    return y1 + (step - newer) / (newer - older) * (y1 - y2)


def by_hand(
    model: nn.Module, blocks: list[nn.Module], inputs: dict[str, Any], **more: Any
) -> list[torch.Tensor]:
    """What the last block hands on is the stream at the first one, and a line through what was added before."""
    stream: list[torch.Tensor] = []
    added: list[tuple[int, torch.Tensor]] = []
    step = 0

    def first(block: nn.Module, args: Any, kwargs: dict[str, Any]) -> None:
        stream[:] = [kwargs["hidden_states"].clone()]

    def last(block: nn.Module, args: Any, output: Any) -> Any:
        if step in DENSE:
            added.append((step, output[1] - stream[0]))
            return None
        return output[0], stream[0] + line(added, step)

    handles = [
        blocks[0].register_forward_pre_hook(first, with_kwargs=True),
        blocks[-1].register_forward_hook(last),
    ]
    outputs = []
    with torch.no_grad():
        for step in range(STEPS):
            outputs.append(model(**moving(inputs, step, STEPS), **more)[0])
    for handle in handles:
        handle.remove()
    return outputs


@EVERY_KIND
@pytest.mark.parametrize(("first", "last"), [(0, -1), (1, -1), (-1, -1)])
def test_it_is_what_it_is_by_hand(kind: Kind, first: int, last: int) -> None:
    model, inputs = kind.model(), kind.case.inputs()
    before, dense = module_state(model), run_plain(model, inputs, STEPS)
    expected = by_hand(model, kind.blocks(model)[first:], inputs)
    sdtm_fx.rewrite(model, forecasting(kind, "body", span={**WHOLE, "first": first, "last": last}))
    found = run_steps(model, inputs, STEPS)
    for step in range(STEPS):
        if step in DENSE:
            assert torch.equal(found[step], dense[step])
        else:
            torch.testing.assert_close(found[step], expected[step], atol=2e-5, rtol=2e-5)
            assert (found[step] - dense[step]).abs().max() > 1e-3
    sdtm_fx.restore(model)
    assert module_state(model) == before
    assert all_equal(run_plain(model, inputs, STEPS), dense)


@EVERY_KIND
@pytest.mark.parametrize("order", [0, 1])
def test_sites_forecast_one_by_one_give_the_same(kind: Kind, order: int) -> None:
    model, inputs = kind.model(), kind.case.inputs()
    with sdtm_fx.rewritten(model, forecasting(kind, *SITES[kind.case.family], order=order)):
        apart = run_steps(model, inputs, STEPS)
        each = the_rewriting(model).runtime.state.bytes()["features"]
    with sdtm_fx.rewritten(model, forecasting(kind, "body", order=order)):
        whole = run_steps(model, inputs, STEPS)
        one = the_rewriting(model).runtime.state.bytes()["features"]
    for left, right in zip(apart, whole, strict=True):
        torch.testing.assert_close(left, right, atol=2e-5, rtol=2e-5)
    assert one * 6 <= each


def test_copies_are_not_the_same_as_lines() -> None:
    kind, inputs = KINDS[0], SD3.inputs()
    model = kind.model()
    with sdtm_fx.rewritten(model, forecasting(kind, "body", order=0)):
        copies = run_steps(model, inputs, STEPS)
    with sdtm_fx.rewritten(model, forecasting(kind, "body")):
        lines = run_steps(model, inputs, STEPS)
    assert (copies[4] - lines[4]).abs().max() > 1e-3


@EVERY_KIND
def test_no_module_of_its_blocks_runs(kind: Kind) -> None:
    model, inputs = kind.model(), kind.case.inputs()
    sdtm_fx.rewrite(model, forecasting(kind, "body"))
    ran: list[str] = []
    for number, block in enumerate(kind.blocks(model)):
        for name, module in block.named_modules():
            if name and not list(module.children()):
                module.register_forward_hook(lambda *_, at=f"{number}.{name}": ran.append(at))
    with torch.no_grad(), sdtm_fx.steps(model, STEPS) as clock:
        for step in range(STEPS):
            ran.clear()
            model(**moving(inputs, step, STEPS))
            assert bool(ran) == (step in DENSE), (step, ran[:3])
            clock.advance()


@EVERY_KIND
def test_its_costs_are_counted_exactly(kind: Kind) -> None:
    model, inputs = kind.model(), kind.case.inputs()
    sdtm_fx.rewrite(model, forecasting(kind, "body"))
    told = sdtm_fx.explain(model, steps=STEPS, grid=(8, 8), batch=2, text=5, quiet=True)
    dense, forecast = told.phases
    assert [(s.span, s.residual, s.tokens_before, s.tokens_after) for s in told.spans] == [
        ("body", "forecast", 64, 0)
    ]
    assert {site.skipped for site in told.sites if site.phase == 1} == {None}
    assert {site.tokens_after for site in told.sites if site.phase == 1} == {0}
    assert "forecast" in str(told)
    with torch.no_grad(), sdtm_fx.steps(model, STEPS) as clock:
        for step in range(STEPS):
            with MacCounter() as counter:
                model(**moving(inputs, step, STEPS))
            expected = dense if step in DENSE else forecast
            assert counter.macs.total == pytest.approx(expected.macs.total, rel=1e-6)
            assert counter.macs.linear == pytest.approx(expected.macs.linear, rel=1e-6)
            clock.advance()
        assert the_rewriting(model).runtime.state.bytes()["features"] == told.feature_bytes


def test_what_was_forecast_is_recorded() -> None:
    model = sd3()
    sdtm_fx.rewrite(model, forecasting(KINDS[0], "body"))
    with sdtm_fx.record_plans(model) as record:
        run_steps(model, SD3.inputs(), STEPS)
    actions = {step: {site.action for site in record.at(step=step)} for step in range(STEPS)}
    stored = {"refresh", "dense"}  # blocks between the ends of the span are dense as they are
    assert actions == {0: stored, 1: stored, 2: {"forecast"}, 3: stored, 4: {"forecast"}, 5: {"dense"}}
    assert {site.kept for site in record.at(step=2)} == {0}


def test_controlnet_residuals_count_once() -> None:
    """The model adds them between its blocks: on forecast steps they are part of what is forecast."""
    model, inputs = sd3(), SD3.inputs()
    control = [torch.randn(2, 64, 16, generator=torch.Generator().manual_seed(n)) for n in range(4)]
    more = {"block_controlnet_hidden_states": control}
    expected = by_hand(model, KINDS[0].blocks(model), inputs, **more)
    sdtm_fx.rewrite(model, forecasting(KINDS[0], "body"))
    found = run_steps(model, inputs, STEPS, **more)
    for left, right in zip(found, expected, strict=True):
        torch.testing.assert_close(left, right, atol=2e-5, rtol=2e-5)


@EVERY_KIND
def test_text_keys_are_weighed_where_blocks_run(kind: Kind) -> None:
    model, inputs = kind.model(), kind.case.inputs()
    with sdtm_fx.rewritten(model, forecasting(kind, "body")):
        plain = run_steps(model, inputs, STEPS)
    weighed = forecasting(kind, "body").override(prompt={"start": 2.0, "end": 0.5})
    with sdtm_fx.rewritten(model, weighed):
        found = run_steps(model, inputs, STEPS)
    for left, right in zip(plain, found, strict=True):  # a forecast starts from what was weighed
        assert (left - right).abs().max() > 1e-4
    apart = forecasting(kind, *SITES[kind.case.family]).override(prompt={"start": 2.0, "end": 0.5})
    with sdtm_fx.rewritten(model, apart):
        for left, right in zip(run_steps(model, inputs, STEPS), found, strict=True):
            torch.testing.assert_close(left, right, atol=2e-5, rtol=2e-5)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_is_as_near_as_forecasts_site_by_site(dtype: torch.dtype) -> None:
    """What is stored is the difference of two long streams, rounded as they are."""
    kind = KINDS[0]
    exact, model = kind.model(), kind.model().to(dtype)
    inputs = kind.case.inputs()
    half = {k: v.to(dtype) if torch.is_tensor(v) and k != "timestep" else v for k, v in inputs.items()}
    far = []
    for names in (["attn", "ff"], ["body"]):
        with sdtm_fx.rewritten(exact, forecasting(kind, *names)):
            expected = run_steps(exact, inputs, STEPS)
        with sdtm_fx.rewritten(model, forecasting(kind, *names)):
            found = run_steps(model, half, STEPS)
        far.append(sum(float((a.float() - b).abs().mean()) for a, b in zip(found, expected, strict=True)))
    assert far[1] < 1.5 * far[0]


def test_a_middle_block_may_be_left_out_and_the_first_may_not() -> None:
    """Skip-layer guidance calls the model a second time, without some of its blocks."""
    model, inputs = sd3(), SD3.inputs()
    sdtm_fx.rewrite(model, forecasting(KINDS[0], "body"))
    with torch.no_grad(), sdtm_fx.steps(model, STEPS) as clock:
        for step in range(STEPS):
            whole, without = (
                model(**moving(inputs, step, STEPS), skip_layers=skipped)[0] for skipped in ([], [2])
            )
            assert (whole - without).abs().max() > 1e-4
            clock.advance()
    with torch.no_grad(), sdtm_fx.steps(model, STEPS):
        with pytest.raises(
            PlanError, match="inside span 'body', but the block that begins it has not run in this"
        ):
            model(**inputs, skip_layers=[0])
        with pytest.raises(PlanError, match="the block that ends span 'body' has not run in this call"):
            model(**inputs, skip_layers=[3])


def test_a_branch_without_features_computes_all_blocks() -> None:
    """A second call in a step that begins late (guidance that comes and goes) finds nothing to forecast from."""
    model, inputs = sd3(), SD3.inputs()
    sdtm_fx.rewrite(model, forecasting(KINDS[0], "body"))
    with torch.no_grad(), observed_inputs(model, "ff") as seen, sdtm_fx.steps(model, STEPS) as clock:
        for step in range(STEPS):
            model(**moving(inputs, step, STEPS))
            if step >= 2:
                seen.clear()
                model(**moving(inputs, step, STEPS), skip_layers=[])
                assert len(seen) == (4 if step != 4 else 0)
            clock.advance()


@pytest.mark.parametrize(
    ("span", "message"),
    [
        (
            {"first": 0, "last": 2},
            r"span 'body': the model reads output 0 of transformer_blocks\.2, the last block, beside the image tokens",
        ),
        (
            {"first": 0, "last": -1, "output": 0},
            "between transformer_blocks.0 and transformer_blocks.1 the image tokens are not handed on as they are",
        ),
    ],
)
def test_what_cannot_be_forecast(span: dict[str, Any], message: str) -> None:
    model = sd3()
    before = module_state(model)
    with pytest.raises(SiteError, match=message):
        sdtm_fx.rewrite(model, forecasting(KINDS[0], "body", span={**SPAN, **span}))
    assert module_state(model) == before


def test_a_site_in_it_runs_in_no_block() -> None:
    with pytest.raises(
        SiteError, match=r"site 'ff' lies in transformer_blocks\.0, which span 'body' covers; a block that"
    ):
        sdtm_fx.rewrite(sd3(), forecasting(KINDS[0], "body", "ff"))


def test_a_dense_block_in_it_is_refused() -> None:
    recipe = forecasting(KINDS[0], "body").override({"keep_dense.layers": [2]})
    with pytest.raises(
        SiteError, match=r"transformer_blocks\.2, which keep_dense\.layers keeps dense; blocks that are"
    ):
        sdtm_fx.rewrite(sd3(), recipe)


@pytest.mark.compile
@EVERY_KIND
@pytest.mark.parametrize("regional", [False, True], ids=["whole", "regional"])
def test_it_is_compiled(kind: Kind, regional: bool) -> None:
    model, inputs = kind.model(), kind.case.inputs()
    sdtm_fx.rewrite(model, forecasting(kind, "body"))
    eager = run_steps(model, inputs, STEPS)
    sdtm_fx.compile(model, regional=regional, backend="eager")
    assert all_equal(run_steps(model, inputs, STEPS), eager)
    held = [
        f.newer.data_ptr()
        for b in the_rewriting(model).runtime.state.branches.values()
        for f in b.features.values()
    ]
    assert len(held) == 1
    assert all_equal(run_steps(model, inputs, STEPS), eager)
