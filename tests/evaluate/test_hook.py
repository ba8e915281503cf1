"""diffusers' TaylorSeer as a row: it starts afresh with every image, is counted honestly, and goes away."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from sdtm_fx.errors import NothingMatched
from sdtm_fx.evaluate.hook import CountedCalls, TaylorSeer, forecast_share, match_hook
from sdtm_fx.evaluate.match import BudgetError
from sdtm_fx.toy.pipeline import ToySD3Pipeline
from tests.evaluate.tiny import tiny_pipeline

SIZE = {"height": 8, "width": 12}
HOOK = TaylorSeer(name="taylorseer", interval=2, first_steps=2, last_steps=1)


@pytest.fixture(scope="module")
def pipe() -> ToySD3Pipeline:
    return tiny_pipeline()


def draw(pipe: ToySD3Pipeline, seed: int = 0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    images: Tensor = pipe("", num_inference_steps=7, output_type="latent", generator=generator, **SIZE).images
    return images


def test_it_forecasts_counts_and_leaves_nothing_behind(pipe: ToySD3Pipeline) -> None:
    before = {name: set(module.__dict__) for name, module in pipe.transformer.named_modules()}
    dense = draw(pipe)
    with HOOK.applied(pipe, 7):
        calls = CountedCalls(pipe)
        with calls.counting():
            first = draw(pipe)
        other, again = draw(pipe, seed=1), draw(pipe)
    assert not torch.equal(first, dense)
    assert torch.equal(first, again), "a generation knows nothing of the one before"
    assert not torch.equal(first, other)
    assert torch.equal(draw(pipe), dense)
    assert {name: set(module.__dict__) for name, module in pipe.transformer.named_modules()} == before
    # What was computed is what the rule says, and what was saved is what runs inside the hooked modules.
    most = max(macs.total for macs in calls.macs)
    assert tuple(macs.total == most for macs in calls.macs) == HOOK.computed(7)
    share = forecast_share(HOOK, pipe, **SIZE)
    assert 0.5 < share < 1
    assert calls.cost(1).speedup == pytest.approx(1 / (1 - share * HOOK.computed(7).count(False) / 7))


def test_computed_steps_follow_diffusers() -> None:
    assert HOOK.computed(8) == (True, True, False, True, False, True, False, True)
    wide = TaylorSeer(name="taylorseer", interval=3, first_steps=1, last_steps=0)
    assert wide.computed(8) == (True, False, True, False, False, True, False, False)


def test_a_budget_takes_the_smallest_interval_and_then_leading_steps(pipe: ToySD3Pipeline) -> None:
    hook, speedup = match_hook(HOOK, pipe, speedup=1.3, steps=28, **SIZE)
    assert hook.interval == 2
    assert hook.first_steps > 2
    assert speedup == pytest.approx(1.3, rel=0.04)
    share = forecast_share(HOOK, pipe, **SIZE)
    assert speedup == pytest.approx(1 / (1 - share * hook.computed(28).count(False) / 28))
    assert match_hook(HOOK, pipe, speedup=2.6, steps=28, **SIZE)[0].interval > 2


def test_what_cannot_be(pipe: ToySD3Pipeline) -> None:
    with pytest.raises(BudgetError, match=r"hook taylorseer: found a budget of 9x; accepted 1\.\d\dx to \d"):
        match_hook(HOOK, pipe, speedup=9, steps=8, **SIZE)
    with pytest.raises(BudgetError, match="hook taylorseer: found no setting that saves anything at 3 steps"):
        match_hook(HOOK, pipe, speedup=1.3, steps=3, **SIZE)
    lost = HOOK.model_copy(update={"modules": ("blocks",)})
    with pytest.raises(
        NothingMatched, match="blocks matches no module of SD3Transformer2DModel; accepted reg"
    ):
        forecast_share(lost, pipe, **SIZE)
