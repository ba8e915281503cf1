"""Studies: strict YAML with lines in its errors, and rows that are left out only with a reason."""

from __future__ import annotations

import logging
from pathlib import Path

import pytest

from sdtm_fx.evaluate.hook import HookedRow
from sdtm_fx.evaluate.study import StudyError, list_studies, load_study
from sdtm_fx.recipe import Recipe
from sdtm_fx.toy.pipeline import ToySD3Pipeline
from tests.evaluate.tiny import tiny_pipeline

TEXT = """\
version: 1
name: example
model: toy-sd3
defaults: {steps: 8, height: 16, width: 16}
overrides: {sites.*.expect: null, plan.round_to: 1}
budgets: [1.37, 1.38, 40]
rows:
  - {label: dense, method: dense}
  - {label: dense again, method: dense}
  - {label: plain, method: plain, recipe: sd3-medium-windows, overrides: {ratio.start: 0.5}, judged: false}
  - {label: late, method: late, recipe: sd3-medium-windows, steps: {least: 20}, why_steps: it is slow}
  - label: cache
    method: cache
    recipe: sd3-medium
    knob: interval
    judged: [1.38]
  - {label: hook, method: hook, hook: {name: taylorseer}, knob: interval, budgets: [1.5]}
"""


@pytest.fixture(scope="module")
def pipe() -> ToySD3Pipeline:
    return tiny_pipeline()


def written(folder: Path, old: str = "", new: str = "") -> Path:
    assert old in TEXT
    path = folder / "example.yaml"
    path.write_text(TEXT.replace(old, new, 1) if old else TEXT, encoding="utf-8")
    return path


@pytest.mark.parametrize("name", list_studies())
def test_shipped_studies_load(name: str) -> None:
    study = load_study(name)
    assert study.spec.name == name
    assert study.spec.model in ("toy-sd3", "toy-flux")
    assert study.spec.rows[0].recipe is None, "dense comes first"
    for row in study.spec.rows:
        assert row.recipe is None or isinstance(study.recipe(row), Recipe)


def test_the_studies_that_are_published_ship() -> None:
    assert set(list_studies()) == {
        "methods-toy-sd3", "ablations-toy-sd3", "rotary-toy-flux", "leading-toy-sd3", "settings-toy-sd3",
        "baselines-toy-sd3", "baselines-toy-flux", "methods-toy-flux",
    }  # fmt: skip
    assert load_study("methods-toy-sd3").spec.budgets == (1.3, 1.5, 2.2)


def test_rows_are_solved_or_left_out_with_a_reason(
    pipe: ToySD3Pipeline, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    seen: list[str] = []
    with caplog.at_level(logging.WARNING):
        planned = load_study(written(tmp_path)).plan(pipe, on_row=seen.append)
    assert seen == ["dense", "dense again", "plain", "late", "cache", "hook"]
    labels = [row.label for row in planned.rows]
    assert labels[:2] == ["dense", "plain"]
    assert labels[2].startswith("cache, 1.37x wanted, 1."), (
        "eight steps are too few to meet it; the label says so"
    )
    assert labels[3].startswith("hook, 1.5x")
    assert len(labels) == 4
    hooked = planned.rows[3]
    assert isinstance(hooked, HookedRow)
    assert hooked.hook is not None
    assert [row.budget for row in planned.rows] == [None, None, 1.37, 1.5]
    assert [row.judged for row in planned.rows] == [True, False, False, True]
    assert planned.rows[0].recipe is None
    plain = planned.rows[1].recipe
    assert plain is not None
    assert plain.ratio.start == 0.5
    reasons = {skipped.label: skipped.reason for skipped in planned.skipped}
    assert reasons["dense again"] == "at 8 steps it is the same as 'dense'"
    assert reasons["late"] == "it is for 20 steps or more, not 8: it is slow"
    assert reasons["cache, 1.38x"].startswith("at 8 steps it is the same as 'cache, 1.37x")
    assert "found a budget of 40x; accepted" in reasons["cache, 40x"]
    assert set(reasons) == {"dense again", "late", "cache, 1.38x", "cache, 40x"}
    assert all(f"row {label!r} is left out" in caplog.text for label in reasons)


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("budgets: [1.37", "budgets: [0.9", r":6: budgets\[0\]: found 0\.9; accepted a number above 1"),
        (
            "method: plain",
            "methd: plain",
            r":10: rows\[2\]\.methd: found an unknown key; accepted label, method",
        ),
        ("method: dense}", "colour: red}", r":8: rows\[0\]\.method: found nothing; accepted text"),
        (
            "label: plain",
            "label: dense",
            r":10: rows\[2\]\.label: found 'dense' a second time; accepted a diff",
        ),
        (
            "knob: interval\n",
            "knob: intervall\n",
            r":15: rows\[4\]\.knob: .*'ratio', 'interval', 'leading' or 'threshold'",
        ),
        (
            "knob: interval, b",
            "knob: ratio, b",
            r":17: rows\[5\]\.knob: found 'ratio' beside a hook; accepted 'in",
        ),
        (
            "name: taylorseer}",
            "name: tailor}",
            r":17: rows\[5\]\.hook\.name: found 'tailor'; accepted 'taylorseer'",
        ),
        (
            "hook: {",
            "recipe: toy-sd3, hook: {",
            r":17: rows\[5\]\.hook: found a hook beside a recipe; accepted one",
        ),
        (
            "method: dense}",
            "method: dense, knob: ratio}",
            r":8: rows\[0\]\.knob: found a knob of the dense model",
        ),
        (
            "method: dense}",
            "method: dense, overrides: {a: 1}}",
            r":8: rows\[0\]\.overrides: found overrides with",
        ),
        (
            "method: dense}",
            "method: dense, judged: [1.5]}",
            r":8: rows\[0\]\.judged: found budgets without a knob; accepted true or false",
        ),
        (
            "knob: interval, b",
            "knob: interval, judged: [1.4], b",
            r":17: rows\[5\]\.judged: found 1\.4, which is none of the row's budgets; accepted some of 1\.5",
        ),
        (
            "ratio.start: 0.5}, j",
            "ratio.start: 0.5}, budgets: [2], j",
            r":10: rows\[2\]\.budgets: found budgets with",
        ),
        (
            "budgets: [1.37, 1.38, 40]",
            "budgets: []",
            r":15: rows\[4\]\.knob: found a knob without budgets; acc",
        ),
        (
            "{least: 20}",
            "{least: 20, most: 8}",
            r":11: rows\[3\]\.steps: found 20 to 8; accepted least at most",
        ),
        (
            "recipe: sd3-medium-windows,",
            "recipe: sd3-medum,",
            r":10: rows\[2\] 'plain': .*'sd3-medum'.*did you mean 'sd3-m",
        ),
        (
            "ratio.start: 0.5",
            "ratio.strat: 0.5",
            r":10: rows\[2\] 'plain': .*ratio\.strat: found an unknown key",
        ),
        ("version: 1", "version: 2", r":1: version: found 2; accepted 1"),
        ("rows:", "rows: *all", r":7: .*found the alias"),
    ],
)
def test_faults_are_placed(tmp_path: Path, old: str, new: str, message: str) -> None:
    with pytest.raises(StudyError, match="example.yaml" + message):
        load_study(written(tmp_path, old, new))


def test_studies_that_are_not_there(tmp_path: Path) -> None:
    with pytest.raises(
        StudyError, match=r"study name 'method-toy-sd3'; accepted .*did you mean 'methods-toy"
    ):
        load_study("method-toy-sd3")
    with pytest.raises(StudyError, match=r"none.yaml: found no readable file \(No such file"):
        load_study(tmp_path / "none.yaml")


def test_recipes_may_lie_beside_a_study(tmp_path: Path) -> None:
    own = "{version: 1, name: own, extends: sd3-medium-windows, ratio: {start: 0.25}}"
    (tmp_path / "own.yaml").write_text(own, encoding="utf-8")
    study = load_study(written(tmp_path, "recipe: sd3-medium-windows,", "recipe: own.yaml,"))
    assert study.recipe(study.spec.rows[2]).name == "own"


def test_some_rows_of_a_study_and_the_dense_one() -> None:
    study = load_study("methods-toy-sd3")
    assert [row.label for row in study.only(["ToMeSD"]).spec.rows] == ["dense", "ToMeSD"]
    assert [row.label for row in study.only(["SDTM*", "uniform*"]).spec.rows] == [
        "dense", "SDTM", "SDTM*", "SDTM as released", "uniform downsampling",
    ]  # fmt: skip
    assert [row.label for row in study.only(["SDTM[*]"]).spec.rows] == ["dense", "SDTM*"]
    with pytest.raises(
        StudyError,
        match=r"methods-toy-sd3: found no row 'ToMeSDD' \(did you mean 'ToMeSD'\?\); accepted: dense, ",
    ):
        study.only(["SDTM", "ToMeSDD"])
