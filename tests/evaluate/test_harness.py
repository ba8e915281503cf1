"""`evaluate` on a small random pipeline: what it promises whatever the model."""

from __future__ import annotations

import dataclasses
import json
import math
from pathlib import Path
from typing import Any

import pytest
import torch

import sdtm_fx
from sdtm_fx.errors import NothingMatched, SdtmFxError
from sdtm_fx.evaluate import Evaluation, Row, Sampling, Store, evaluate
from sdtm_fx.evaluate.cost import rewriting_in
from sdtm_fx.evaluate.drawing import draw, images_to_draw
from sdtm_fx.evaluate.hook import HookedRow, TaylorSeer
from sdtm_fx.evaluate.identity import identity, pipeline_digest
from sdtm_fx.evaluate.report import as_dict, to_json
from tests.evaluate.conftest import FakeJudge, merging, request, tiny_pipeline

DENSE = Row("dense", "dense", None)
HALF = Row("half", "merging", merging(0.5))
QUARTER = Row("quarter", "merging", merging(0.25))


@pytest.fixture(scope="module")
def found(tiny: Any) -> Evaluation:
    real = torch.rand(60, 3, 16, 20, generator=torch.Generator().manual_seed(9))
    rows = (DENSE, HALF, QUARTER)
    return evaluate(tiny, rows, judge=FakeJudge(), reference=real, **request(30, paired=6, batch=8))


def without_times(evaluation: Evaluation) -> str:
    return to_json({key: value for key, value in as_dict(evaluation).items() if key != "times"})


def sampling(**changes: Any) -> Sampling:
    given = request(**changes)
    given.update(prompts=tuple(given["prompts"]), seeds=tuple(given["seeds"]), guidance_scale=None)
    return Sampling(**{"paired": len(given["seeds"]), "judged": 0, **given})


def test_dense_against_dense_is_zero(found: Evaluation) -> None:
    result = found.row("dense")
    assert result.psnr == (math.inf,) * 6
    assert result.ssim == (1.0,) * 6
    assert result.growth == ((0.0,) * 3,) * 6
    assert (result.linear, result.total) == (1.0, 1.0)
    assert result.frechet_dense is not None
    assert result.frechet_dense.mean == pytest.approx(0, abs=1e-9)


def test_every_image_has_its_numbers(found: Evaluation) -> None:
    for label in ("half", "quarter"):
        result = found.row(label)
        assert len(result.psnr) == len(result.ssim) == len(result.growth) == 6
        assert len(result.right) == 30
        assert all(0 < value < math.inf for value in result.psnr)
        assert all(len(steps) == 3 and steps[0] > 0 for steps in result.growth)
        assert result.growth_at(2) == found.estimate(label, "error")
        assert result.total < 1
        assert result.images.shape == (8, 3, 16, 20)
    assert found.graded == ("red", "any", "all")
    assert found.accuracy("half", "any").mean == 1
    assert found.accuracy("half", "red") == found.accuracy("half")
    assert found.estimate("half", "red_right").mean == pytest.approx(found.accuracy("half", "red").mean)


def test_the_cost_is_that_of_explain(found: Evaluation, tiny: Any) -> None:
    given = request(4)
    with sdtm_fx.rewritten(tiny, HALF.recipe or ""):
        tiny(
            given["prompts"],
            height=given["height"],
            width=given["width"],
            num_inference_steps=given["steps"],
            output_type="latent",
        )
        told = sdtm_fx.explain(tiny, quiet=True)
    cost = found.row("half").cost
    assert cost is not None
    assert cost.total == pytest.approx(told.mean.total / told.dense.total)
    assert cost.linear == pytest.approx(told.mean.linear / told.dense.linear)
    assert cost.speedup == pytest.approx(told.theoretical_speedup)
    assert cost.dense.total == pytest.approx(told.dense.total * told.steps / 4)
    assert found.dense_macs == cost.dense


def test_fréchet_distances_need_enough_images_and_have_a_floor(found: Evaluation, tiny: Any) -> None:
    assert found.frechet_missing is None
    assert found.frechet_floor is not None
    assert found.frechet_floor > 0
    for result in found.rows:
        assert result.frechet_real is not None
        assert result.frechet_real.mean > found.frechet_floor  # random weights draw nothing like that
    few = evaluate(tiny, [DENSE], judge=FakeJudge(), **request(4, steps=1))
    assert few.frechet_missing == "4 judged images are too few for 12 features, 13 are needed"
    assert few.row("dense").frechet_dense is None
    assert few.accuracy("dense").count == 4


def test_two_evaluations_are_equal_bit_for_bit(tiny: Any) -> None:
    first, second = (
        evaluate(pipe, (HALF, DENSE), judge=FakeJudge(), **request(5)) for pipe in (tiny, tiny_pipeline())
    )
    assert without_times(first) == without_times(second)
    assert json.loads(without_times(first))["rows"][1]["psnr"]["mean"] == "inf"


def test_images_do_not_depend_on_their_order_or_company(tiny: Any) -> None:
    settings = request(4, batch=2)
    swapped = {**settings, "prompts": settings["prompts"][::-1], "seeds": settings["seeds"][::-1]}
    values = [evaluate(tiny, (HALF,), **given).row("half").psnr for given in (settings, swapped)]
    assert values[0] == values[1][::-1]


def test_rows_that_draw_the_same_are_drawn_once(tiny: Any) -> None:
    rows = (DENSE, HALF, Row("again", "merging", merging(0.5)))
    reported: list[int] = []
    result = evaluate(tiny, rows, **request(5), on_image=reported.append)
    assert sum(reported) == 10 == images_to_draw(rows, result.sampling)
    assert result.row("again").psnr == result.row("half").psnr
    assert result.difference("again", "half").mean == 0


def test_a_row_that_is_not_judged_draws_only_what_is_compared(tiny: Any) -> None:
    unjudged = dataclasses.replace(HALF, judged=False)
    twin = dataclasses.replace(QUARTER, label="twin", judged=False)
    rows = (unjudged, twin, QUARTER)
    reported: list[int] = []
    given = request(8, paired=3, batch=2)
    result = evaluate(tiny, rows, judge=FakeJudge(), **given, on_image=reported.append)
    assert sum(reported) == 8 + 4 + 8 == images_to_draw(rows, result.sampling)
    assert [len(row.right) for row in result.rows] == [0, 0, 8]
    assert [len(row.psnr) for row in result.rows] == [3, 3, 3]
    assert result.row("half").frechet_dense is None
    assert result.row("twin").psnr == result.row("quarter").psnr, "a twin needs no images of its own"
    told = [row["accuracy"] for row in as_dict(result)["rows"]]
    assert told[:2] == [{}, {}]
    assert set(told[2]) == {"red", "any", "all"}
    for ask in (result.accuracy, lambda label: result.estimate(label, "red_right")):
        with pytest.raises(SdtmFxError, match=r"row 'half' was not judged; judged: quarter$"):
            ask("half")


def test_an_interrupted_evaluation_goes_on(
    tiny: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls: list[int] = []
    sample = type(tiny).__call__

    def counted(self: Any, prompt: list[str], *arguments: Any, **settings: Any) -> Any:
        if len(calls) == 3:
            raise KeyboardInterrupt
        calls.append(len(prompt))
        return sample(self, prompt, *arguments, **settings)

    counted.__signature__ = __import__("inspect").signature(sample)  # type: ignore[attr-defined]
    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(type(tiny), "__call__", counted)
        evaluate(tiny, (DENSE, HALF), store=Store(identity(tiny), tmp_path), **request(6))
    assert rewriting_in(tiny) is None
    assert calls == [4, 2, 4]
    with monkeypatch.context() as patch:
        patch.setattr(type(tiny), "__call__", counted)
        calls[:] = []
        resumed = evaluate(tiny, (DENSE, HALF), store=Store(identity(tiny), tmp_path), **request(6))
    assert calls == [2]
    assert without_times(resumed) == without_times(evaluate(tiny, (DENSE, HALF), **request(6)))


def test_what_was_drawn_for_the_judge_only_is_drawn_again_to_be_followed(tiny: Any) -> None:
    store = Store(identity(tiny))
    evaluate(tiny, (HALF,), store=store, **request(6, batch=2, paired=2))
    keys = [store.key(row, sampling(batch=2), range(4, 6)) for row in (None, HALF)]
    assert [store.holds(keys[0]), store.holds(keys[0], latents=True)] == [True, False]
    assert [store.holds(keys[1]), store.holds(keys[1], growth=True)] == [True, False]
    assert len(evaluate(tiny, (HALF,), store=store, **request(6, batch=2)).row("half").growth) == 6


def test_keys_tell_apart_what_draws_other_images(tiny: Any) -> None:
    store, batch = Store(identity(tiny)), range(4)
    base = store.key(HALF, sampling(), batch)
    others = [
        store.key(None, sampling(), batch),
        store.key(QUARTER, sampling(), batch),
        store.key(HALF, sampling(), range(4, 6)),
        store.key(HALF, sampling(steps=4), batch),
        store.key(HALF, sampling(height=18), batch),
        Store({**identity(tiny), "threads": 2}).key(HALF, sampling(), batch),
    ]
    assert len({base, *others}) == 7
    assert store.key(Row("renamed", "other", HALF.recipe), sampling(judged=3), batch) == base
    changed = tiny_pipeline()
    assert pipeline_digest(changed) == pipeline_digest(tiny)
    changed.transformer.proj_out.bias.data[0] += 1
    assert pipeline_digest(changed) != pipeline_digest(tiny)
    changed = tiny_pipeline()
    changed.scheduler.register_to_config(shift=3.0)
    assert pipeline_digest(changed) != pipeline_digest(tiny)


def test_a_damaged_batch_is_named(tiny: Any, tmp_path: Path) -> None:
    evaluate(tiny, (DENSE,), store=Store(identity(tiny), tmp_path), **request(2))
    path = next(tmp_path.iterdir())
    path.write_bytes(path.read_bytes()[:-9])
    with pytest.raises(SdtmFxError, match=rf"{path.name}: this batch of images is damaged .* delete it"):
        evaluate(tiny, (DENSE,), store=Store(identity(tiny), tmp_path), **request(2))
    Store({}, tmp_path).clear()
    assert list(tmp_path.iterdir()) == []


def test_a_failing_row_leaves_the_pipeline_dense(tiny: Any) -> None:
    before = pipeline_digest(tiny)
    wrong = merging(0.5).override({"sites.attn.expect": 7})
    with pytest.raises(NothingMatched, match="7"):
        evaluate(tiny, (DENSE, HALF, Row("wrong", "merging", wrong)), **request(2))
    assert rewriting_in(tiny) is None
    assert pipeline_digest(tiny) == before


def test_images_that_are_not_finite_are_named(monkeypatch: pytest.MonkeyPatch) -> None:
    broken = tiny_pipeline()
    broken.transformer.proj_out.bias.data[0] = math.nan
    with pytest.raises(SdtmFxError, match=r"row 'dense' drew images that are not finite \(seed 0\)"):
        evaluate(broken, (DENSE,), **request(2))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"seeds": [], "prompts": []}, "no images; give at least one seed and one prompt"),
        ({"seeds": [0, 1]}, "6 prompts and 2 seeds; every image needs one of each"),
        ({"seeds": [0] * 6, "prompts": ["a"] * 6}, "a prompt comes twice with the same seed"),
        ({"steps": 0}, "steps must be at least 1, found 0"),
        ({"batch": -1}, "batch must be at least 1, found -1"),
        ({"paired": 7}, "paired must be from 1 to the 6 images, found 7"),
        ({"judged": 7, "judge": FakeJudge()}, "judged must be from 0 to the 6 images, found 7"),
        ({"height": 33}, "toy: height 33 px is not accepted; it must be a multiple of 2 from 2 to 96"),
        ({"width": 8}, "images of 16 x 8 px are smaller than the window of SSIM, 11 px"),
        (
            {"judge": FakeJudge(), "reference": torch.zeros(5, 3, 16, 20)},
            "5 real images for 6 judged ones; Fréchet distances compare at equal numbers only",
        ),
    ],
)
def test_settings_that_make_no_sense_are_refused(tiny: Any, changes: dict[str, Any], message: str) -> None:
    with pytest.raises(SdtmFxError, match=message):
        evaluate(tiny, (DENSE,), **request(**changes))


def test_rows_that_make_no_sense_are_refused(tiny: Any) -> None:
    with pytest.raises(SdtmFxError, match="no rows; give at least one, for example"):
        evaluate(tiny, (), **request())
    with pytest.raises(SdtmFxError, match="two rows are labelled 'half'; every row needs a label of its own"):
        evaluate(tiny, (HALF, DENSE, HALF), **request())


def test_pipelines_that_will_not_do_are_refused(tiny: Any) -> None:
    with pytest.raises(SdtmFxError, match="found a SD3Transformer2DModel; a diffusers pipeline is needed"):
        evaluate(tiny.transformer, (DENSE,), **request())
    with (
        sdtm_fx.rewritten(tiny, merging(0.5)),
        pytest.raises(SdtmFxError, match=r"rewritten already; call sdtm_fx.restore\(pipeline\) first"),
    ):
        evaluate(tiny, (DENSE,), **request())

    class Silent:
        components = tiny.components

        def __call__(self, prompt: str, height: int, width: int) -> None: ...

    with pytest.raises(
        SdtmFxError, match="Silent does not accept num_inference_steps, generator, output_type"
    ):
        draw(Silent(), (DENSE,), sampling(), Store({}))


def test_names_that_are_not_there_are_errors_with_the_nearest(found: Evaluation) -> None:
    with pytest.raises(SdtmFxError, match=r"no row 'halv' \(did you mean 'half'\?\); there are dense, half"):
        found.row("halv")
    with pytest.raises(
        SdtmFxError, match=r"no metric 'psrn' \(did you mean 'psnr'\?\); there are psnr, ssim"
    ):
        found.estimate("half", "psrn")
    with pytest.raises(
        SdtmFxError, match=r"'rad' was not graded \(did you mean 'red'\?\); graded: red, any, all"
    ):
        found.accuracy("half", "rad")
    with pytest.raises(SdtmFxError, match="graded: nothing, there was no judge"):
        dataclasses.replace(found, attributes=()).accuracy("half")


def test_differences_that_have_no_mean_are_refused(found: Evaluation) -> None:
    left = dataclasses.replace(found.row("half"), psnr=(math.inf, 1.0))
    right = dataclasses.replace(found.row("quarter"), psnr=(1.0, math.inf))
    with pytest.raises(SdtmFxError, match="infinite with both signs"):
        dataclasses.replace(found, rows=(left, right)).difference("half", "quarter")


def test_a_row_may_be_a_hook_of_diffusers(tiny: Any) -> None:
    hook = TaylorSeer(name="taylorseer", interval=2)
    before = pipeline_digest(tiny)
    found = evaluate(tiny, (DENSE, HookedRow("hook", "TaylorSeer", None, hook=hook)), **request(3, steps=6))
    result = found.row("hook")
    assert all(math.isfinite(value) for value in result.psnr)
    assert all(steps[0] == 0 and steps[-1] > 0 for steps in result.growth)  # the first steps are computed
    assert result.total < 1
    assert pipeline_digest(tiny) == before
    assert as_dict(found)["rows"][1]["variant"] == hook.fingerprint()
