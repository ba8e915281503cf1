"""What merging the queries of cross-attention saves, on a U-Net: in proportion to the text, not to the image."""

from __future__ import annotations

import pytest
import torch

import sdtm_fx
from sdtm_fx.cost.counter import MacCounter
from tests.methods.test_tomesd import recipe, unet


@pytest.mark.parametrize("sites", [["attn2"], ["attn1", "attn2", "ff"]], ids="+".join)
def test_explain_agrees_with_a_direct_count(sites: list[str]) -> None:
    model = sdtm_fx.rewrite(unet(), recipe(sites, 0.5))
    for grid, text in (((8, 12), 7), ((16, 8), 30)):
        told = sdtm_fx.explain(model, steps=1, grid=grid, batch=2, text=text, quiet=True)
        latent, time, prompt = torch.randn(2, 4, *grid), torch.full((2,), 500.0), torch.randn(2, text, 24)
        with torch.no_grad(), sdtm_fx.steps(model, 1), MacCounter() as counter:
            model(latent, time, prompt)
        assert told.phases[0].macs.total == pytest.approx(counter.macs.total, rel=1e-6)
        assert told.phases[0].macs.linear == pytest.approx(counter.macs.linear, rel=1e-6)
