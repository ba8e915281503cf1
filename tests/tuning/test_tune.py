"""`tune` and its command on the SD3 toy: what is written loads, meets the budget, and beats nothing by cheating."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from typer.testing import CliRunner

from sdtm_fx.cli.main import app
from sdtm_fx.errors import SdtmFxError
from sdtm_fx.evaluate.models import ModelSource
from sdtm_fx.recipe import load_recipe
from sdtm_fx.tuning import Goal, tune
from sdtm_fx.tuning.measuring import Ruler, measuring
from sdtm_fx.tuning.tune import _sampling
from tests.tuning.conftest import one_stage

TINY = Goal("tiny", 1.4, steps=4, height=16, width=16, images=1, chosen=2, held_out=2, batch=2, trials=6)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"speedup": 1.0}, "found a speedup of 1x; accepted one above 1"),
        ({"steps": 0}, "steps must be at least 1, found 0"),
        ({"held_out": 0}, "held_out must be at least 1, found 0"),
        ({"minutes": 0.0}, "minutes must be above 0, found 0"),
    ],
)
def test_goals_that_cannot_be_had(changes: dict[str, float], message: str) -> None:
    with pytest.raises(SdtmFxError, match=message):
        Goal(**{**vars(TINY), **changes})


def test_images_of_the_parts_are_apart() -> None:
    assert TINY.parts == (range(1), range(2, 4), range(4, 6))
    odd = Goal(**{**vars(TINY), "images": 3, "chosen": 5, "batch": 4})
    assert odd.parts == (range(3), range(4, 9), range(12, 14))


@pytest.mark.slow
def test_a_search_on_the_toy() -> None:
    source, seen = ModelSource("toy-sd3"), []
    found = tune(source, [one_stage()], TINY, on_trial=lambda trial, best: seen.append(best))
    assert len(found.trials) == 6
    assert seen == sorted(seen)
    assert found.tuned.speedup >= 1.4 * (1 - 1e-6)
    assert {rival.label for rival in found.rivals} >= {"best caching to start from"}
    assert all(len(one.held_out) == 2 for one in (found.tuned, *found.rivals))
    again = tune(source, [one_stage()], TINY)
    assert [t.quality for t in again.trials] == [t.quality for t in found.trials]
    assert again.tuned.held_out == found.tuned.held_out
    # Two processes measure what one does.
    with measuring(Ruler(source, _sampling(source, TINY)), 2) as measure:
        assert measure([found.tuned.recipe], TINY.parts[2]) == [found.tuned.held_out]


@pytest.mark.slow
def test_nothing_reaches_the_budget() -> None:
    with pytest.raises(
        SdtmFxError, match="nothing reaches 50x at 4 steps on a 8x8 grid, not even with one dense"
    ):
        tune(ModelSource("toy-sd3"), [one_stage()], Goal(**{**vars(TINY), "speedup": 50.0}))


@pytest.mark.slow
def test_time_that_is_over_before_anything_was_tried() -> None:
    with pytest.raises(
        SdtmFxError, match=r"0\.0001 minutes were over before any of \d+ starting points was tried on 1 im"
    ):
        tune(ModelSource("toy-sd3"), [one_stage()], Goal(**{**vars(TINY), "minutes": 1e-4}))


@pytest.mark.slow
def test_the_command_writes_a_recipe_that_loads(tmp_path: Path) -> None:
    base, out, data = tmp_path / "base.yaml", tmp_path / "mine.yaml", tmp_path / "trials.json"
    base.write_text(one_stage().override(name="base").to_yaml(), encoding="utf-8")
    sizes = [
        "--steps",
        "4",
        "--height",
        "16",
        "--width",
        "16",
        "--images",
        "1",
        "--chosen",
        "1",
        "--held-out",
        "2",
    ]
    command = [
        "tune",
        "--speedup",
        "1.4",
        "--recipe",
        str(base),
        "--recipe",
        "baselines/random-toy-sd3",
        *sizes,
        "--against",
        "baselines/tome-toy-sd3",
        "--trials",
        "3",
        "--json",
        str(data),
    ]
    result = CliRunner().invoke(app, [*command, "-o", str(out)])
    assert result.exit_code == 0, result.output
    assert "3 trials" in result.output
    text, told = out.read_text(encoding="utf-8"), json.loads(data.read_text(encoding="utf-8"))
    assert "# best caching to start from:" in text
    assert "extends: base.yaml" in text
    recipe = load_recipe(out)
    assert {one["label"] for one in told["rivals"]} >= {"baselines/tome-toy-sd3 by hand"}
    assert (recipe.name, recipe.keep_dense.first_steps) == ("mine", 0)
    written, meant = recipe.to_data(), told["tuned"]["recipe"]
    assert {k: v for k, v in written.items() if k not in ("name", "description", "stages", "ratio")} == {
        k: v for k, v in meant.items() if k not in ("name", "description", "stages", "ratio")
    }
    assert [s["method"] for s in written["stages"]] == [s["method"] for s in meant["stages"]]
    assert len(told["trials"]) == 3
    page = CliRunner().invoke(app, ["tables", str(data)]).stdout
    assert page.startswith("## toy-sd3, 4 steps, 1.4x\n")
    assert "name: mine" in page


def test_errors_of_the_command(tmp_path: Path) -> None:
    def refused(*arguments: str) -> str:
        command = ["tune", "--speedup", "1.5", "-o", str(tmp_path / "x.yaml"), *arguments]
        result = CliRunner().invoke(app, command)
        assert result.exit_code == 1
        return result.output

    assert "no quality 'psrn' (did you mean 'psnr'?); accepted: psnr, ssim" in refused("--quality", "psrn")
    assert "no toy and no folder 'toy-sd4'" in refused("--model", "toy-sd4")
    folder = tmp_path / "checkpoint"
    folder.mkdir()
    (folder / "model_index.json").write_text("{}", encoding="utf-8")
    assert "is no toy; name the recipe whose sites are searched (--recipe)" in refused("--model", str(folder))
    assert not (tmp_path / "x.yaml").exists()
