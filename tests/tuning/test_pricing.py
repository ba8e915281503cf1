"""What settings cost: the cost model of one rewritten model tells those with blocks left whole too."""

from __future__ import annotations

from dataclasses import replace

import pytest

from sdtm_fx.evaluate.models import ModelSource
from sdtm_fx.evaluate.schedule_costs import measure_costs, probe_size
from sdtm_fx.recipe import load_recipe
from sdtm_fx.tuning import pricing as pricing_module
from sdtm_fx.tuning.pricing import Pricing
from sdtm_fx.tuning.setting import Setting, setting_of


@pytest.fixture(scope="module")
def flux() -> Pricing:
    """Two stages that merge different sites, on blocks of two kinds: one of them stores nothing for the other."""
    base = load_recipe("toy-flux-merge").override({"stages.structure.sites": ["ff"]})
    pipeline = ModelSource("toy-flux").load()
    return Pricing((base,), pipeline, probe_size(pipeline, base, steps=8, height=32, width=32), 1.1, "tuned")


def setting_on(pricing: Pricing) -> Setting:
    plain = setting_of(pricing.bases[0], pricing.size.steps, removed=0.4)
    return replace(plain, order=1, dense=(0, 1, 4))


@pytest.mark.parametrize(("name", "whole"), [("pricing", (1,)), ("flux", (0, 1))])
def test_blocks_left_whole_cost_what_a_model_rewritten_so_costs(
    name: str, whole: tuple[int, ...], request: pytest.FixtureRequest
) -> None:
    pricing: Pricing = request.getfixturevalue(name)
    setting = setting_on(pricing)
    recipe = pricing.recipe(replace(setting, whole=whole))
    measured = measure_costs(recipe, pricing.target, pricing.size).speedup(recipe)
    assert pricing.price(replace(setting, whole=whole)) == pytest.approx(measured, rel=1e-12)
    assert measured < pricing.price(setting)


def test_a_model_is_rewritten_once_for_all_that_may_be_left_whole(
    pricing: Pricing, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[str] = []

    def counted(*args: object) -> object:
        asked.append("model")
        return measure_costs(*args)  # type: ignore[arg-type]

    monkeypatch.setattr(pricing_module, "measure_costs", counted)
    fresh = Pricing(pricing.bases, pricing.target, pricing.size, pricing.speedup, pricing.name)
    prices = [fresh.price(replace(setting_on(fresh), whole=whole)) for whole in ((), (0,), (1, 2))]
    assert len(asked) == 1
    assert prices == sorted(set(prices), reverse=True)
