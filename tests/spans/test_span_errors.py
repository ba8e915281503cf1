"""What a span cannot be, said at rewrite, and the model as it was."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn

import sdtm_fx
from sdtm_fx.errors import NothingMatched, PlanError, SdtmFxError, SiteError
from sdtm_fx.runtime.call import BlockContext, OpenSpan
from sdtm_fx.runtime.span_ops import inside_span
from tests.passes.blocks import GRID, GatedBlock, condition, image
from tests.passes.working import FF, Calls
from tests.passes.working import recipe as toy_recipe
from tests.spans.cases import FLUX_SPAN, SPAN, flux, recipe, sd3
from tests.user.cases import FLUX_DEV, SD3, distance, module_state, run_steps

OTHER = {**SPAN, "id": "other"}


@pytest.mark.parametrize(
    ("spans", "changes", "kind", "message"),
    [
        ([{"first": 9}], {}, NothingMatched, "span 'body': `first`: there is no block 9; the model has 4"),
        (
            [{"last": "transformer_block.2"}],
            {},
            NothingMatched,
            r"`last`: 'transformer_block.2' matches no block with sites; the first is transformer_blocks.0, the last "
            r"transformer_blocks.3 \(did you mean 'transformer_blocks.2'",
        ),
        (
            [{"first": "transformer_blocks.*"}],
            {},
            NothingMatched,
            "`first` matches 4 blocks and `last` 1; they are paired in order",
        ),
        (
            [{"first": 2, "last": 1}],
            {},
            SiteError,
            "goes from transformer_blocks.2 to transformer_blocks.1; with enter 'start' the last block is the first "
            "one or a later one",
        ),
        (
            [{"first": 2, "last": 2, "enter": "end"}],
            {},
            SiteError,
            "with enter 'end' the last block is a later one",
        ),
        (
            [{"first": r"re:.*\.(0|1)", "last": r"re:.*\.(2|3)"}],
            {},
            SiteError,
            "begins at transformer_blocks.1 before it has ended at transformer_blocks.2",
        ),
        (
            [{}],
            {"keep_dense.layers": [2]},
            SiteError,
            "span 'body' covers transformer_blocks.2, which keep_dense.layers keeps dense",
        ),
        (
            [{}],
            {"layers": [{"match": "transformer_blocks.2", "scale": 0.0}]},
            SiteError,
            "span 'body' covers transformer_blocks.2, about which `layers` has a rule; .* accepted are rules about",
        ),
        (
            [{}],
            {"layers": [{"match": "transformer_blocks.1", "reduce": "prune"}]},
            SiteError,
            "span 'body' covers transformer_blocks.1, about which `layers` has a rule",
        ),
        (
            [{"input": "hidden_state"}],
            {},
            SiteError,
            r"has no argument 'hidden_state'; it has .*did you mean 'hidden_states'",
        ),
        (
            [{"input": "hidden_state", "last": 1}],
            {},
            SiteError,
            r"JointTransformerBlock is given no argument 'hidden_state' for `input`; it is "
            r"given .*did you mean 'hidden_states'",
        ),
        (
            [{"input": "temb", "last": 1}],
            {},
            SiteError,
            "argument 'temb' is not a .batch, tokens, width. tensor",
        ),
        (
            [{"output": 0}],
            {},
            SiteError,
            "between transformer_blocks.1 and transformer_blocks.2 the image tokens are not handed on as they are",
        ),
        (
            [{"output": 7, "last": 1}],
            {},
            SiteError,
            "JointTransformerBlock returns 2 values; there is no output 7",
        ),
        ([{"output": None, "last": 1}], {}, SiteError, "what it returns as image tokens is no"),
        ([{"output": 0, "last": 1}], {}, SiteError, r"takes image tokens as \[.*\] and returns them as"),
        ([{"rotary": "tables", "last": 1}], {}, SiteError, "JointTransformerBlock is given no 'tables'"),
        (
            [{}, OTHER | {"first": 2, "last": 3}],
            {},
            SiteError,
            "stage 'structure': spans 'body' and 'other' both cover transformer_blocks.2",
        ),
        (
            [{}],
            {"stages.detail.sites": ["body", "ff"]},
            SiteError,
            "stage 'detail': site 'ff' lies in transformer_blocks.1, which span 'body' covers",
        ),
    ],
)
def test_what_a_span_cannot_be(
    spans: list[dict[str, Any]], changes: dict[str, Any], kind: type[SdtmFxError], message: str
) -> None:
    model = sd3()
    before = module_state(model)
    with pytest.raises(kind, match=message):
        sdtm_fx.rewrite(model, recipe(SD3, *({**SPAN, **span} for span in spans), **changes))
    assert module_state(model) == before


def test_rotary_tables_that_are_not_named_are_missed() -> None:
    model = flux()
    before = module_state(model)
    with pytest.raises(
        SiteError, match=r"does not run on fewer image tokens.*name their argument with `rotary`"
    ):
        sdtm_fx.rewrite(model, recipe(FLUX_DEV, {**FLUX_SPAN, "rotary": None}))
    assert module_state(model) == before


class Outer(nn.Module):
    """Three blocks, and something that reads what the first one returned."""

    def __init__(self) -> None:
        super().__init__()
        self.blocks = nn.ModuleList(GatedBlock() for _ in range(3))

    def forward(self, hidden_states: torch.Tensor, temb: torch.Tensor) -> torch.Tensor:
        first = self.blocks[0](hidden_states, temb)
        return self.blocks[2](self.blocks[1](first, temb), temb) + first


def test_a_span_whose_tokens_are_read_in_between_is_refused() -> None:
    rules = {
        "version": 1,
        "name": "outer",
        "model": ["Outer"],
        "tokens": {"grid": {"height": 4, "width": 6}},
        "sites": [{"id": "ff", "kind": "feed_forward", "match": "blocks.*.ff"}],
        "spans": [{"id": "body", "first": 0, "last": 2}],
        "stages": [{"name": "all", "until": 1.0, "sites": ["body"], "method": {"name": "ssm"}}],
        "ratio": {"curve": "constant", "start": 0.5},
    }
    model, example = Outer(), {"hidden_states": image(), "temb": condition()}
    with pytest.raises(
        SiteError, match=r"between blocks.0 and blocks.1 the model reads the image tokens too \("
    ):
        sdtm_fx.rewrite(model, rules, example=example)
    sdtm_fx.rewrite(model, {**rules, "spans": [{"id": "body", "first": 1, "last": 2}]}, example=example)
    with torch.no_grad(), sdtm_fx.steps(model, 3) as clock:
        clock.step = 1
        assert model(**example).shape == example["hidden_states"].shape


def test_blocks_inside_a_span_check_their_tokens() -> None:
    plan = sdtm_fx.plan_merge("ssm", image(), grid=GRID, remove=12)
    call = Calls(toy_recipe([FF])).make()
    context = BlockContext(call, 5, {}, spans={"body": OpenSpan(plan, None)})
    assert inside_span(context, torch.zeros(2, 12, 8), "body").shape == (2, 12, 8)
    with pytest.raises(
        PlanError, match="block 5 is inside span 'body' and got 24 image tokens instead of 12"
    ):
        inside_span(context, image(), "body")


def test_tables_may_be_cut_for_comparison() -> None:
    outputs = []
    for gathers in (True, False):
        model = flux()
        sdtm_fx.rewrite(model, recipe(FLUX_DEV, FLUX_SPAN, **{"passes.gather_rotary": gathers}))
        outputs.append(run_steps(model, FLUX_DEV.inputs(), 3))
    assert torch.equal(outputs[0][0], outputs[1][0])
    assert distance(outputs[0][1:2], outputs[1][1:2]) > 1e-3


def test_sites_outside_of_a_span_merge_as_ever() -> None:
    model = sd3()
    sites = [
        {"id": "outer", "kind": "feed_forward", "match": r"re:transformer_blocks\.[03]\.ff"},
        {"id": "inner", "kind": "feed_forward", "match": r"re:transformer_blocks\.[12]\.ff"},
    ]
    rules = recipe(SD3, SPAN, sites=sites).override(
        {"stages.structure.sites": ["outer", "body"], "stages.detail.sites": ["outer", "inner"]}
    )
    sdtm_fx.rewrite(model, rules)
    told = sdtm_fx.explain(model, steps=10, grid=(8, 8), batch=2, text=5, quiet=True)
    short = {
        phase: {s.path for s in told.sites if s.phase == phase and s.skipped is None} for phase in (1, 2)
    }
    everything = {f"transformer_blocks.{i}.ff" for i in range(4)}
    assert short[1] == short[2] == everything
    assert [span.phase for span in told.spans] == [1]
