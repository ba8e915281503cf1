"""`sdtm-fx analyze`, and the files that it writes."""

from __future__ import annotations

import csv
import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from typer.testing import CliRunner

import sdtm_fx
from sdtm_fx.analyze import Sampling, Settings, analyze, suggest
from sdtm_fx.analyze.plots import spatial_maps
from sdtm_fx.analyze.report import save_data
from sdtm_fx.cli.main import app
from tests.analyze.prompted import sd3
from tests.analyze.test_suggest import STRUCTURE_THEN_DETAIL, analysis

SMALL = ("--images", "1", "--steps", "4", "--height", "16", "--width", "20")


def run(*arguments: str, code: int = 0) -> str:
    result = CliRunner().invoke(app, ["analyze", *arguments])
    assert result.exit_code == code, result.output
    return " ".join(result.output.split())


def test_it_writes_data_and_plots_of_the_toy(tmp_path: Path) -> None:
    out = tmp_path / "out"
    text = run(*SMALL, "--maps", "--out", str(out))
    assert "SD3Transformer2DModel, token layout of recipe toy-sd3, 6 blocks" in text
    assert "Suggestion, a heuristic on features; judge it by images:" in text
    data = json.loads((out / "analysis.json").read_text())
    assert (data["grid"], data["steps"], data["images"], data["source"]) == ([8, 10], 4, 1, "toy-sd3")
    assert len(data["prompts"]) == 1
    rows = list(csv.DictReader((out / "blocks.csv").read_text().splitlines()))
    assert len(rows) == 2 * 4 * 6
    with np.load(out / "analysis.npz") as arrays:
        assert arrays["output_similarity"].shape == (1, 4, 6)
        assert arrays["update_map_distance"].shape == (4, 6, 8, 10)
        assert arrays["output_similarity"][0, 2, 3] == pytest.approx(
            float(rows[2 * 6 + 3]["similarity"]), rel=1e-4
        )
        assert arrays["output_LL"].mean(axis=(0, 2)) == pytest.approx(
            data["curves"]["output"]["LL"], rel=1e-4
        )
    for name in ("curves", "heatmaps_output", "heatmaps_update", "maps_output", "maps_update"):
        with Image.open(out / f"{name}.png") as image:
            assert image.width > 400
            assert len(image.convert("RGB").resize((64, 64)).getcolors(4096) or []) > 50  # something is drawn


def test_two_runs_give_the_same_data() -> None:
    sampling, settings = Sampling(steps=4), Settings(windows=(2,))
    one, two = (analyze(sd3(), ["a"], sampling, settings=settings) for _ in range(2))
    for kind in ("output", "update"):
        for left, right in zip(one.scalars(kind).values(), two.scalars(kind).values(), strict=True):
            assert np.array_equal(left, right)


def test_a_suggested_recipe_is_written_where_there_is_one(tmp_path: Path) -> None:
    found = analysis(*STRUCTURE_THEN_DETAIL)
    files = save_data(found, suggest(found), tmp_path, {})
    assert [file.name for file in files][-1] == "suggested.yaml"
    assert sdtm_fx.load_recipe(files[-1]).stages[0].until == 0.4


def test_the_suggestion_extends_the_file_that_was_named(tmp_path: Path) -> None:
    mine, out = tmp_path / "mine.yaml", tmp_path / "out"
    mine.write_text("version: 1\nname: mine\nextends: toy-sd3-windows\nseed: 7\n", encoding="utf-8")
    out.mkdir()
    found = analysis(*STRUCTURE_THEN_DETAIL)
    files = save_data(found, suggest(found), out, {}, str(mine))
    assert "extends: ../mine.yaml" in files[-1].read_text(encoding="utf-8")
    assert sdtm_fx.load_recipe(files[-1]).seed == 7


def test_maps_must_have_been_recorded() -> None:
    with pytest.raises(ValueError, match="holds no maps"):
        spatial_maps(analysis(*STRUCTURE_THEN_DETAIL), "update")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--model", "toy-sd2"), "no toy and no folder 'toy-sd2' (did you mean 'toy-sd3'?)"),
        (("--recipe", "flux.1-dev"), "recipe 'flux.1-dev' is for FluxTransformer2DModel"),
        (("--recipe", "sd3-medum"), "did you mean 'sd3-medium'?"),
        (
            ("--height", "17", "--width", "16"),
            "height 17 px is no whole number of tokens; accepted: multiples of 2 px",
        ),
        (("--wavelet", "db99"), "no orthogonal wavelet 'db99'"),
        (("--prompts", "EMPTY"), "has no prompts; write one a line"),
        (("--prompts", "nowhere.txt"), "nowhere.txt cannot be read"),
        (("--prompts", "UNKNOWN"), "is not in the toy's vocabulary"),
    ],
)
def test_bad_input_is_named(arguments: tuple[str, ...], message: str, tmp_path: Path) -> None:
    files = {"EMPTY": "\n  \n", "UNKNOWN": "a large plain purpel circle\n"}
    for name, text in files.items():
        (tmp_path / name).write_text(text)
    given = [str(tmp_path / a) if a in files else a for a in arguments]
    assert message in run(*SMALL[:4], *given, "--out", str(tmp_path / "out"), code=1)
    assert not (tmp_path / "out").exists()
