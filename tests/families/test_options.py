"""What recipes offer in their comments, and what they refuse."""

from __future__ import annotations

from typing import Any

import pytest
import torch

import sdtm_fx
from sdtm_fx.cost.counter import MacCounter
from sdtm_fx.errors import CaptureError, SiteError
from tests.families.cases import FAMILIES, FamilyCase


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


def test_lengths_that_are_read_on_the_host_cannot_be_traced() -> None:
    """Why there is no recipe for Lumina 2."""
    from diffusers import Lumina2Transformer2DModel

    model = Lumina2Transformer2DModel(
        sample_size=8, hidden_size=24, num_layers=1, num_refiner_layers=1, num_attention_heads=2, num_kv_heads=1,
        multiple_of=8, axes_dim_rope=(4, 4, 4), axes_lens=(32, 32, 32), cap_feat_dim=8, in_channels=4,
    )  # fmt: skip
    rules = sdtm_fx.load_recipe("sana").override(
        {
            "model": ["Lumina2Transformer2DModel"],
            "tokens.grid.patch": 2,
            "inputs.encoder_hidden_states": ["batch", "text", 8],
            "sites": [
                {"id": "self", "kind": "feed_forward", "match": "layers.*.feed_forward", "prefix": "*"}
            ],
        }
    )
    with pytest.raises(CaptureError, match="the forward reads a value of a tensor on the host"):
        sdtm_fx.rewrite(model, rules)
