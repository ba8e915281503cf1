"""`sdtm-fx toy`, with few steps and images."""

from __future__ import annotations

import dataclasses
import inspect
import json
from collections.abc import Sequence
from pathlib import Path

import pytest
import torch
from click.testing import Result
from PIL import Image
from typer.testing import CliRunner

from sdtm_fx.cli import toy_train
from sdtm_fx.cli.main import app
from sdtm_fx.toy.judge import ATTRIBUTES, Judge
from sdtm_fx.toy.pipeline import ToySD3Pipeline
from sdtm_fx.toy.trainer import TrainConfig

SHORT = (
    "--steps", "2", "--high-steps", "1", "--pixels", "1024", "--high-pixels", "1024", "--warmup", "1", "--float32",
    "--every", "1",
)  # fmt: skip


def call(*arguments: str | Path) -> Result:
    return CliRunner().invoke(app, ["toy", *map(str, arguments)], env={"COLUMNS": "200"})


def succeed(*arguments: str | Path) -> str:
    result = call(*arguments)
    assert result.exit_code == 0, result.output
    return result.output


def fail(*arguments: str | Path) -> str:
    result = call(*arguments)
    assert result.exit_code == 1, result.output
    assert "Traceback" not in result.output
    return result.output


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("run")
    output = succeed("train", "--out", folder, *SHORT)
    assert "loss" in output
    assert "loss.png" in output
    return folder


def test_every_setting_of_a_run_is_an_option() -> None:
    options = inspect.signature(toy_train.train).parameters
    assert {field.name for field in dataclasses.fields(TrainConfig)} <= set(options)


def test_training_writes_a_checkpoint_and_a_loss_curve(run: Path) -> None:
    curve = json.loads((run / "losses.json").read_text())
    assert len(curve["loss"]) == 2
    expected = {"model": "sd3", "steps": 2, "high_steps": 1, "pixels": 1024, "bfloat16": False, "seed": 0}
    assert curve["config"].items() >= expected.items()
    assert curve["config"]["matrix_lr"] == TrainConfig().matrix_lr
    with Image.open(run / "loss.png") as picture:
        assert picture.size == (960, 540)
        assert len(picture.convert("RGB").getcolors(1 << 20)) > 20


def test_a_run_exports_and_resumes(run: Path, tmp_path: Path) -> None:
    assert "pipeline:" in succeed("export", "--run", run, "--out", tmp_path, "--shift", "1.5")
    pipe = ToySD3Pipeline.from_pretrained(tmp_path, low_cpu_mem_usage=False)
    assert pipe.scheduler.config.shift == 1.5
    assert "2/2" in succeed("train", "--out", run, "--resume", *SHORT)
    assert "holds a run already; pass --resume" in fail("train", "--out", run, *SHORT)
    assert "of another run: seed 0 (now 7)" in fail("train", "--out", run, "--resume", "--seed", "7", *SHORT)
    assert "no model 'flx' (did you mean 'flux'?)" in fail(
        "train", "--out", tmp_path, "--model", "flx", *SHORT
    )


def test_a_checkpoint_cut_short_is_named(run: Path, tmp_path: Path) -> None:
    checkpoint = tmp_path / "checkpoint.pt"
    content = (run / "checkpoint.pt").read_bytes()
    checkpoint.write_bytes(content[: len(content) // 2])
    commands: Sequence[Sequence[str | Path]] = (
        ("train", "--out", tmp_path, "--resume", *SHORT),
        ("export", "--run", tmp_path, "--out", tmp_path / "pipeline"),
        ("judge", "--out", tmp_path, "--resume"),
    )
    for command in commands:
        assert f"train: {checkpoint} is not a whole checkpoint" in fail(*command)
    assert not (tmp_path / "pipeline").exists()
    assert "nothing to resume or export" in fail("export", "--run", tmp_path / "none", "--out", tmp_path)


def test_the_judge_is_trained_examined_and_exported(tmp_path: Path) -> None:
    arguments = ("judge", "--out", tmp_path / "run", "--steps", "1", "--scenes", "2")
    output = succeed(*arguments, "--export", tmp_path / "weights")
    assert "judge, 2 unseen rendered scenes per size" in output
    assert "32 x 96" in output
    found = json.loads((tmp_path / "run" / "accuracy.json").read_text())
    assert list(found) == ["64 x 64", "32 x 32", "48 x 48", "96 x 96", "48 x 64", "32 x 96"]
    assert list(found["64 x 64"]) == ["count", *ATTRIBUTES, "all"]
    assert (tmp_path / "run" / "loss.png").is_file()
    trained = torch.load(tmp_path / "run" / "checkpoint.pt", weights_only=True)["judge"]["stem.conv.weight"]
    judge = Judge.from_pretrained(tmp_path / "weights", low_cpu_mem_usage=False)
    assert torch.equal(judge.stem.conv.weight, trained.half().float())


def test_grades_are_printed_and_written(tmp_path: Path) -> None:
    small = ("--images", "3", "--steps", "2", "--height", "32", "--width", "36", "--batch", "2")
    output = succeed("grade", *small, "--out", tmp_path / "deep" / "grades.json")
    assert "toy sd3, 3 images, 2 steps" in output
    found = json.loads((tmp_path / "deep" / "grades.json").read_text())
    assert (found["model"], found["images"], found["width"]) == ("sd3", 3, 36)
    everything = found["accuracy"]["all"]
    assert everything["low"] <= everything["share"] == everything["hits"] / 3 <= everything["high"]
    assert "height 31 px is not accepted" in fail("grade", *small, "--height", "31")
    assert "no toy 'sd4' (did you mean 'sd3'?)" in fail("grade", "--model", "sd4")


def test_a_contact_sheet_is_drawn(tmp_path: Path) -> None:
    path = tmp_path / "deep" / "sheet.png"
    size = ("--images", "3", "--columns", "2", "--steps", "1", "--height", "32", "--width", "48")
    assert "contact sheet" in succeed("sheet", "--out", path, *size)
    with Image.open(path) as picture:
        assert picture.width == 2 * (2 * 128 + 18)
        assert picture.height > 2 * 85
