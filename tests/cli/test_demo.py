"""`sdtm-fx demo`, with few steps."""

from __future__ import annotations

import json
import math
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from PIL import Image
from typer.testing import CliRunner

import sdtm_fx
from sdtm_fx.cli.main import app
from sdtm_fx.demo import tasks
from sdtm_fx.demo.compare import compare


@pytest.mark.slow
def test_it_draws_reports_and_restores(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "160")
    arguments = ["demo", "--out", str(tmp_path / "out"), "--steps", "6", "--pixels", "16", "--prompts", "1"]
    result = CliRunner().invoke(app, arguments)
    assert result.exit_code == 0, result.output
    for text in (
        "recipe toy-sd3",
        "recipe paper/sd3-medium",
        "recipe toy-flux",
        "recipe flux.1-dev-windows",
        "MACs per step",
        "CPU",
    ):
        assert text in result.stdout
    for name in ("toy-sd3", "toy-flux", "random-sd3", "random-flux"):
        with Image.open(tmp_path / "out" / f"{name}.png") as sheet:
            assert sheet.width > 300
    page = (tmp_path / "out" / "index.html").read_text(encoding="utf-8")
    assert all(
        title in page
        for title in (
            "trained toy, SD3 blocks",
            "trained toy, FLUX blocks",
            "real FluxPipeline",
            "paper/sd3-medium",
        )
    )
    assert f"all of it on one page: {tmp_path / 'out' / 'index.html'}" in result.stdout
    report = json.loads((tmp_path / "out" / "report.json").read_text())
    assert [len(comparison["outcomes"]) for comparison in report] == [3, 3, 1, 2]
    for comparison in report:
        for outcome in comparison["outcomes"]:
            assert outcome["restored"]
            assert all(5 < value < math.inf for value in outcome["psnr"])
            assert outcome["explanation"]["theoretical_speedup"] > 1


def test_a_restore_that_is_not_exact_is_a_failure(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sdtm_fx.demo.compare.restore", lambda pipeline: pipeline)
    monkeypatch.setattr(tasks, "trained", lambda toy, steps, *_: tasks.random_sd3(steps))
    monkeypatch.setattr(tasks, "random_flux", tasks.random_sd3)
    result = CliRunner().invoke(app, ["demo", "--out", str(tmp_path), "--steps", "8"], env={"COLUMNS": "160"})
    assert result.exit_code == 1
    assert "restore did not give the dense pipeline back: random-sd3, sd3-medium-windows" in result.stdout


def test_a_recording_that_changes_images_is_a_failure(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    task = tasks.trained("sd3", 2, 16, 1, ("paper/sd3-medium",))
    assert task.watch is not None
    image, predictions = task.watch(task.make(), 0)  # a dense one, where a merged one is expected
    watched = replace(task, watch=lambda pipeline, case: (image, predictions))
    monkeypatch.setattr(tasks, "trained", lambda *_: watched)
    monkeypatch.setattr(tasks, "random_sd3", lambda steps: watched)
    monkeypatch.setattr(tasks, "random_flux", lambda steps: watched)
    monkeypatch.setattr("sdtm_fx.demo.page.render_page", lambda comparisons: "")
    result = CliRunner().invoke(app, ["demo", "--out", str(tmp_path)], env={"COLUMNS": "160"})
    assert result.exit_code == 1
    assert "recording what merged changed the images: toy-sd3, paper/sd3-medium" in result.stdout


def test_equal_cases_start_from_equal_noise() -> None:
    task = tasks.random_sd3(2)
    images = [task.draw(task.make(), 0) for _ in range(2)]
    assert torch.equal(images[0], images[1])
    assert not torch.equal(images[0], task.draw(task.make(), 1))


def test_a_comparison_counts_its_images_and_leaves_the_dense_pipeline_alone() -> None:
    task = tasks.random_flux(4)
    seen: list[None] = []
    comparison = compare(task, on_image=lambda: seen.append(None))
    assert len(seen) == task.draws == len(task.captions) * (1 + len(task.recipes))
    assert torch.equal(comparison.images[0], task.draw(task.make(), 0))
    assert {o.recipe for o in comparison.outcomes} == {"flux.1-dev-windows", "flux.1-dev-attention"}
    assert all(len(o.psnr) == len(task.captions) for o in comparison.outcomes)


def test_recipes_of_the_demo_are_the_shipped_ones_without_counts() -> None:
    for recipe in tasks.random_flux(4).recipes:
        shipped = sdtm_fx.load_recipe(recipe.name)
        assert all(site.expect is None for site in recipe.sites)
        assert recipe.stages == shipped.stages
