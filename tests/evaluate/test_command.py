"""`sdtm-fx eval`."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from PIL import Image
from typer.testing import CliRunner

from sdtm_fx.cli.main import app
from sdtm_fx.errors import SdtmFxError
from sdtm_fx.evaluate import Row, Sampling, parallel
from sdtm_fx.evaluate.models import ModelSource
from sdtm_fx.recipe import load_recipe

SMALL = (
    "--images",
    "3",
    "--judge-images",
    "0",
    "--steps",
    "2",
    "--height",
    "16",
    "--width",
    "16",
    "--batch",
    "2",
)


def run(*arguments: str, code: int = 0) -> Any:
    result = CliRunner().invoke(app, ["eval", *arguments], env={"COLUMNS": "180"})
    assert result.exit_code == code, result.output
    return result


def data_in(folder: Path) -> dict[str, Any]:
    data: dict[str, Any] = json.loads((folder / "evaluation.json").read_text(encoding="utf-8"))
    return data


@pytest.fixture
def plain(tmp_path: Path) -> str:
    """A recipe that merges in each of two steps."""
    path = tmp_path / "plain.yaml"
    path.write_text(
        "version: 1\nname: plain\nextends: toy-sd3-merge\nratio: {start: 0.5}\n"
        "keep_dense: {first_steps: 0, last_steps: 0, every_steps: null}\nreuse: null\n"
    )
    return str(path)


@pytest.mark.slow
def test_it_measures_writes_and_goes_on_with_any_number_of_processes(tmp_path: Path, plain: str) -> None:
    first, second = tmp_path / "first", tmp_path / "second"
    result = run("--recipe", plain, *SMALL, "--out", str(first), "--json", str(tmp_path / "copy.json"))
    for text in ("images", "plain", "identical", "2 steps, 16 x 16 px", "evaluation.json"):
        assert text in result.stdout
    data = data_in(first)
    assert [row["label"] for row in data["rows"]] == ["dense", "plain"]
    assert data["rows"][1]["macs"]["speedup"] > 1
    assert data["settings"]["model"] == "toy-sd3"
    assert data["identity"]["threads"] == 1
    assert json.loads((tmp_path / "copy.json").read_text(encoding="utf-8")) == data
    for name in ("quality.png", "images.png"):
        with Image.open(first / name) as picture:
            assert min(picture.size) > 40

    drawn = {path.name: path.stat().st_mtime_ns for path in (first / "batches").iterdir()}
    assert len(drawn) == 4
    run("--recipe", plain, *SMALL, "--out", str(first))
    assert {path.name: path.stat().st_mtime_ns for path in (first / "batches").iterdir()} == drawn
    assert data_in(first) == data  # times too: nothing was drawn

    run("--recipe", plain, *SMALL, "--out", str(second), "--processes", "2")
    parallel_data = data_in(second)
    assert parallel_data.pop("times").keys() == data.pop("times").keys()
    assert parallel_data == data
    assert {path.name for path in (second / "batches").iterdir()} == set(drawn)

    run("--recipe", plain, *SMALL, "--out", str(first), "--fresh")
    again = {path.name: path.stat().st_mtime_ns for path in (first / "batches").iterdir()}
    assert again.keys() == drawn.keys()
    assert all(again[name] > drawn[name] for name in drawn)


def test_the_judge_grades_the_images_of_a_toy(tmp_path: Path) -> None:
    small = ("--images", "2", "--steps", "1", "--height", "32", "--width", "32", "--judge-images", "3")
    result = run("--recipe", "toy-sd3", *small, "--out", str(tmp_path))
    assert "The judge (3 images)" in result.stdout
    assert "Fréchet distances not computed: 3 judged images are too few" in result.stdout
    early = result.stdout.index(
        "no Fréchet distances: 3 judged images are too few for 128 features, 129 are needed"
    )
    assert early < result.stdout.index("images ")
    data = data_in(tmp_path)
    assert len(data["rows"][0]["right"]) == 3
    assert len(data["rows"][0]["psnr"]["values"]) == 2
    assert set(data["rows"][0]["accuracy"]) == {"shape", "colour", "position", "size", "all"}
    assert data["identity"]["judge"]


def test_a_study_gives_rows_and_defaults(tmp_path: Path) -> None:
    study = tmp_path / "mine.yaml"
    study.write_text(
        "version: 1\nname: mine\nmodel: toy-sd3\n"
        "defaults: {steps: 1, height: 16, width: 16, images: 2, judged: 0}\n"
        "rows:\n"
        "  - {label: reference, method: dense}\n"
        "  - {label: late, method: late, steps: {least: 4}}\n"
    )
    result = run("--study", str(study), "--out", str(tmp_path / "out"))
    assert "left out: late" in result.stdout
    data = data_in(tmp_path / "out")
    assert [row["label"] for row in data["rows"]] == ["reference"]
    assert [data["settings"][name] for name in ("steps", "height", "paired", "judged")] == [1, 16, 2, 0]
    assert data["settings"]["left_out"] == [{"label": "late", "reason": "it is for 4 steps or more, not 1"}]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((), "eval: nothing to compare; give --recipe, which may be repeated, or --study"),
        (
            ("--recipe", "toy-sd3", "--model", "toy-sd4"),
            "no toy and no folder 'toy-sd4' (did you mean 'toy-sd3'?)",
        ),
        (("--recipe", "toy-sd4"), "did you mean 'toy-sd3'?"),
        (("--recipe", "toy-sd3", "--recipe", "toy-sd3"), "two rows are labelled 'toy-sd3'"),
        (
            ("--recipe", "toy-sd3", "--height", "33"),
            "toy: height 33 px is not accepted; it must be a multiple of 2",
        ),
        (("--recipe", "toy-sd3", "--dtype", "float31"), "no dtype 'float31' (did you mean 'float32'?)"),
        (("--recipe", "toy-sd3", "--prompts", "no.txt"), "prompts: no.txt cannot be read"),
        (("--recipe", "flux.1-dev"), "is for FluxTransformer2DModel"),
        (("--recipe", "toy-sd3", "--only", "ToMeSD"), "eval: --only chooses rows of a study; give --study"),
        (
            ("--study", "methods-toy-sd3", "--only", "TomeSD"),
            "found no row 'TomeSD' (did you mean 'ToMeSD'?)",
        ),
    ],
)
def test_mistakes_are_one_line_errors(tmp_path: Path, arguments: tuple[str, ...], message: str) -> None:
    small = () if "--height" in arguments else ("--height", "16")
    given = ("--images", "1", "--judge-images", "0", "--steps", "1", "--width", "16", *small)
    result = run(*arguments, *given, "--out", str(tmp_path), code=1)
    assert message in " ".join(result.stderr.split())


def test_a_checkpoint_has_no_judge(tmp_path: Path) -> None:
    (tmp_path / "model_index.json").write_text("{}")
    result = run("--recipe", "sd3-medium", "--model", str(tmp_path), "--judge-images", "9", code=1)
    assert "the judge knows the scenes of the toys only; --judge-images must be 0" in " ".join(
        result.stderr.split()
    )


@pytest.mark.parametrize(("option", "value"), [("--images", "0"), ("--steps", "0"), ("--processes", "0")])
def test_numbers_out_of_range_are_usage_errors(option: str, value: str) -> None:
    assert option in run("--recipe", "toy-sd3", option, value, code=2).stderr


SAMPLING = Sampling(("a red circle",), (0,), 1, 16, 16, None, 1, 1, 0)


@pytest.mark.slow
def test_an_error_of_another_process_arrives(tmp_path: Path) -> None:
    rows = [Row("wrong", "wrong", load_recipe("sd3-medium-windows"))]  # 24 blocks are more than a toy has
    with pytest.raises(SdtmFxError, match="24"):
        parallel.draw_in_processes(
            ModelSource("toy-sd3"), rows, SAMPLING, {"threads": 1}, tmp_path, processes=1
        )


def test_a_process_that_dies_is_noticed() -> None:
    class Dead:
        exitcode = -9

    class Silent:
        def get(self, timeout: float) -> None:
            raise parallel.queue.Empty

    with pytest.raises(
        SdtmFxError, match=r"a process ended with exit code -9 and no message; out of memory\?"
    ):
        parallel._listen([Dead()], Silent(), lambda count: None)


def test_a_defect_in_another_process_keeps_its_traceback() -> None:
    class Messages:
        def get(self, timeout: float) -> tuple[str, str]:
            return "failed", "Traceback ...\nZeroDivisionError: division by zero"

    with pytest.raises(RuntimeError, match="in a process of the evaluation:\nTraceback"):
        parallel._listen([object()], Messages(), lambda count: None)
