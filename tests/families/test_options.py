"""What recipes offer in their comments, and what they refuse."""

from __future__ import annotations

from typing import Any

import pytest
import torch

import sdtm_fx
from sdtm_fx.cost.counter import MacCounter
from sdtm_fx.errors import CaptureError, SiteError
from tests.families.cases import FAMILIES, FamilyCase, lumina_inputs, moving


def named(name: str) -> FamilyCase:
    return next(case for case in FAMILIES if case.name == name)


@pytest.mark.parametrize(
    ("name", "site"),
    [
        pytest.param("pixart-sigma, self cross ff", "self", marks=pytest.mark.slow),
        ("hunyuan-dit", "self"),
        pytest.param("chroma, attn ff single_attn single_ff", "single_attn", marks=pytest.mark.slow),
        ("qwen-image", "attn"),
    ],
)
def test_attention_looks_at_fewer_keys(name: str, site: str) -> None:
    case, grid = named(name), (8, 8)
    changes = {f"sites.{site}.merge": "keys", "stages.*.sites": [site], "ratio": {"curve": "full"}}
    model, inputs = case.model(), case.call(1, grid)
    sdtm_fx.rewrite(model, case.recipe(0.5).override({**changes, "stages.*.method": {"name": "todo"}}))
    with torch.no_grad(), sdtm_fx.steps(model, 1), MacCounter() as counter:
        model(**inputs)
    fewer = [call for call in counter.attended if call.keys < call.queries and call.queries >= 64]
    image = {call.queries - call.keys for call in fewer}
    assert image >= {48}, "a quarter of 64 image keys stays"


def test_a_feed_forward_of_convolutions_stays_dense() -> None:
    case = named("sana")
    rules = case.recipe(0.5).to_data()
    rules["sites"].append({"id": "ff", "kind": "feed_forward", "match": "transformer_blocks.*.ff"})
    rules["stages"][0]["sites"].append("ff")
    where = r"site 'ff' at transformer_blocks\.0\.ff: input 0 is not a \[batch, tokens, width\] tensor but \[2, 16, "
    with pytest.raises(SiteError, match=where + r".*a picture of all tokens, which a convolution goes over"):
        sdtm_fx.rewrite(case.model(), rules)


def test_linear_attention_has_no_keys_to_merge() -> None:
    changes: dict[str, Any] = {"sites.self.merge": "keys", "stages.*.method": {"name": "todo"}}
    with pytest.raises(SiteError, match="Attention computes attention 0 times, expected once"):
        sdtm_fx.rewrite(named("sana").model(), named("sana").recipe(0.5).override(changes))


def test_a_model_keeps_no_table_that_a_trace_has_made() -> None:
    """Z-Image makes its rotary tables on the first call."""
    case = named("z-image")
    model = case.model()
    assert model.rope_embedder.freqs_cis is None
    sdtm_fx.rewrite(model, case.recipe(0.5))
    assert model.rope_embedder.freqs_cis is None
    with torch.no_grad(), sdtm_fx.steps(model, 1):
        model(**case.call(2, (8, 8)))
    tables = model.rope_embedder.freqs_cis
    assert all(type(table) is torch.Tensor for table in tables)
    sdtm_fx.rewrite(model, case.recipe(0.0))  # now they stand in the outer graph, as they are
    assert all(a is b for a, b in zip(model.rope_embedder.freqs_cis, tables, strict=True))


def test_lengths_that_are_read_on_the_host_are_known_where_the_recipe_says_so() -> None:
    case = named("lumina-2")
    model = case.model()
    recipe = case.recipe(0.5)
    with pytest.raises(
        CaptureError, match=r"reads a value of a tensor on the host \(`read: true` in the recipe's"
    ):
        sdtm_fx.rewrite(model, recipe.override({"inputs.encoder_attention_mask.read": False}))
    assert sdtm_fx.rewrite(model, recipe) is model


def test_prompts_of_several_lengths_in_one_call_are_refused() -> None:
    """Their images begin at different places, which the mask of the blocks tells."""
    case = named("lumina-2")
    model, mixed = case.model(), lumina_inputs(2, (8, 8), 5, lengths=(3, 5))
    with torch.no_grad():
        plain = model(**mixed)[0]
        sdtm_fx.rewrite(model, case.recipe(0.5))
        refused = (
            r"site 'ff' at layers\.0\.feed_forward: Lumina2TransformerBlock is given 'attention_mask'; accepted: calls "
            r"without it, .*prompts of one length in a call"
        )
        with sdtm_fx.steps(model, 1), pytest.raises(SiteError, match=refused):
            model(**mixed)
        with sdtm_fx.steps(model, 1):
            model(**lumina_inputs(2, (8, 8), 5, lengths=(3, 3)))
        sdtm_fx.restore(model)
        assert torch.equal(model(**mixed)[0], plain)


def test_prompts_of_another_length_are_the_same_site() -> None:
    """At ratio 0 nothing changes, whatever the length; both halves of guidance have one of their own."""
    case = named("lumina-2")
    model, plain = case.model(), case.model()
    sdtm_fx.rewrite(model, case.recipe(0.0))
    for text in (4, 9):
        call = lumina_inputs(1, (7, 9), text)
        with torch.no_grad(), sdtm_fx.steps(model, 1):
            assert torch.equal(model(**call)[0], plain(**call)[0])


def test_guidance_halves_with_prompts_of_other_lengths_keep_their_own_features() -> None:
    """The pipeline calls the model once for each; alone, each would get the same."""
    case, count = named("lumina-2"), 6
    halves = [lumina_inputs(1, (8, 6), text) for text in (9, 4)]
    recipe = case.recipe(0.5, reuse=True)

    def outputs(*calls: dict[str, Any]) -> list[list[torch.Tensor]]:
        model = sdtm_fx.rewrite(case.model(), recipe)
        found: list[list[torch.Tensor]] = [[] for _ in calls]
        with torch.no_grad(), sdtm_fx.steps(model, count) as clock:
            for step in range(count):
                for call, mine in zip(calls, found, strict=True):
                    mine.append(model(**moving(case, call, step, count))[0])
                clock.advance()
        return found

    together, alone = outputs(*halves), [outputs(half)[0] for half in halves]
    for mine, theirs in zip(together, alone, strict=True):
        assert all(torch.equal(a, b) for a, b in zip(mine, theirs, strict=True))


def test_an_argument_that_blocks_do_not_have_is_no_condition() -> None:
    case = named("lumina-2")
    with pytest.raises(
        SiteError,
        match=r"Lumina2TransformerBlock has no argument 'attention_msk' for `without`; it has hidden_states, "
        r".*did you mean 'attention_mask'",
    ):
        sdtm_fx.rewrite(case.model(), case.recipe(0.5).override({"sites.ff.without": "attention_msk"}))
