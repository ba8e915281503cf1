"""The harness sees what it must see, on the trained toy."""

from __future__ import annotations

import math
from typing import Any

import pytest

from sdtm_fx.evaluate import Evaluation, Row, Sampling, Store, evaluate
from sdtm_fx.evaluate.drawing import draw
from sdtm_fx.evaluate.identity import identity
from sdtm_fx.plan import MergePlan
from sdtm_fx.rows import take_rows
from sdtm_fx.toy import load_toy
from tests.evaluate.conftest import merging, request

NOTHING = Row("ratio zero", "merging", merging(0.0))
HALF, FULL = Row("half", "merging", merging(0.3)), Row("full", "merging", merging(0.6))
BROKEN = Row("broken", "merging", merging(0.6, seed=1))  # another seed, to be another row of the store


@pytest.fixture(scope="module")
def seen() -> Evaluation:
    settings: dict[str, Any] = request(6, steps=5, height=32, width=32, batch=6)
    toy = load_toy("sd3")
    store = Store(identity(toy))
    with pytest.MonkeyPatch.context() as patch:
        # Every token gets the slot of another one.
        patch.setattr(MergePlan, "unmerge", lambda plan, y: take_rows(y, plan.assign.roll(7, dims=1)))
        texts = {"prompts": tuple(settings["prompts"]), "seeds": tuple(settings["seeds"])}
        sampling = Sampling(**{**settings, **texts}, guidance_scale=None, paired=6, judged=0)
        draw(toy, [BROKEN], sampling, store)
    rows = (Row("dense", "dense", None), NOTHING, HALF, FULL, BROKEN)
    return evaluate(toy, rows, store=store, **settings)


@pytest.mark.parametrize("label", ["dense", "ratio zero"])
def test_dense_and_ratio_zero_are_dense_bit_for_bit(seen: Evaluation, label: str) -> None:
    result = seen.row(label)
    assert result.psnr == (math.inf,) * 6
    assert result.ssim == (1.0,) * 6
    assert set(sum(result.growth, ())) == {0.0}
    assert result.total == 1.0
    assert seen.difference(label, "dense").mean == 0


@pytest.mark.parametrize("metric", ["psnr", "ssim"])
def test_a_broken_unmerge_is_worse_and_half_the_ratio_better(seen: Evaluation, metric: str) -> None:
    for better, worse in (("half", "full"), ("full", "broken"), ("half", "broken")):
        difference = seen.difference(better, worse, metric)
        assert difference.mean > 0
        assert difference.excludes_zero, (better, worse, difference)
    broken, half = seen.estimate("broken", metric), seen.estimate("half", metric)
    assert broken.high is not None
    assert half.low is not None
    assert broken.high < half.low


def test_errors_grow_in_the_same_order(seen: Evaluation) -> None:
    assert seen.difference("broken", "full", "error").excludes_zero
    assert seen.difference("full", "half", "error").excludes_zero
    for step in range(4):
        assert seen.row("broken").growth_at(step).mean > seen.row("half").growth_at(step).mean
    assert seen.row("full").total < seen.row("half").total < 1
    assert seen.row("full").total == seen.row("broken").total
