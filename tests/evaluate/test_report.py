"""Tables, data, figure and contact sheet."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image
from rich.console import Console

from sdtm_fx.cost.cost import Cost
from sdtm_fx.cost.counter import Macs
from sdtm_fx.evaluate import Estimate, Evaluation, Row, RowResult, Sampling
from sdtm_fx.evaluate.figure import draw_figure
from sdtm_fx.evaluate.report import as_dict, as_text, render, to_json
from sdtm_fx.evaluate.sheet import draw_sheet
from tests.evaluate.conftest import merging


def result(label: str, method: str, shift: float, ratio: float | None, **changes: Any) -> RowResult:
    macs = Macs(4e9, 8e9)
    given: dict[str, Any] = {
        "row": Row(label, method, None if ratio is None else merging(ratio)),
        "cost": None if ratio is None else Cost(macs * (1 - ratio), macs),
        "seconds": 1.5,
        "images": torch.rand(2, 3, 40, 48, generator=torch.Generator().manual_seed(0)),
        "psnr": (math.inf,) * 2 if ratio is None else (20.0 + shift, 22.0 + 2 * shift),
        "ssim": (1.0, 1.0) if ratio is None else (0.8, 0.9),
        "growth": ((0.0, 0.0),) * 2 if ratio is None else ((0.0, 0.1), (0.0, 0.2 - shift / 100)),
        "right": ((True, True), (True, False)),
    }
    return RowResult(**{**given, **changes})


@pytest.fixture
def evaluation() -> Evaluation:
    sampling = Sampling(("a red circle", "a blue star"), (0, 1), 2, 40, 48, None, 2, 2, 2)
    rows = (
        result("dense", "dense", 0, None),
        result("merge a", "merge", 0, 0.5, frechet_real=Estimate(2.5, 2.0, 3.0, 2)),
        result("merge b", "merge", 1, 0.25),
        result("one identical", "other", 0, 0.1, psnr=(math.inf, 30.0)),
    )
    return Evaluation(
        sampling, {"pipeline": "abc"}, rows, ("shape", "colour"), None, 1.25, "2 judged images are too few"
    )


def test_text_names_identical_images_and_does_not_average_them() -> None:
    assert as_text(Estimate(27.34, 26.1, 28.4, 8), 1) == "27.3 [26.1, 28.4]"
    assert as_text(Estimate(27.34, None, None, 1), 1) == "27.3"
    assert as_text(Estimate(math.inf, math.inf, math.inf, 4, 4), 1) == "identical"
    assert as_text(Estimate(30.0, None, None, 2, 1), 1) == "30.0, without 1 of 2 identical"
    assert as_text(Estimate(0.5, -0.25, 1.25, 8), 2, signed=True) == "+0.50 [-0.25, +1.25]"
    assert as_text(Estimate(-math.inf, None, None, 2, 2), 2, signed=True) == "-inf"


def test_tables_hold_cost_fidelity_differences_and_the_judge(evaluation: Evaluation) -> None:
    console = Console(width=200, no_color=True)
    with console.capture() as capture:
        console.print(render(evaluation))
    lines = capture.get().splitlines()
    dense = next(line for line in lines if "│ dense " in line)
    assert "identical" in dense
    assert "1.00x" in dense
    assert any(
        "merge a" in line and "0.50" in line and "2.00x" in line and "21.0 [20.0, 22.0]" in line
        for line in lines
    )
    assert any("merge b" in line and "+1.50 [+1.00, +2.00]" in line for line in lines)
    assert any("one identical" in line and "30.0, without 1 of 2 identical" in line for line in lines)
    assert any("merge a" in line and "0.500 [" in line and "2.50 [2.00, 3.00]" in line for line in lines)
    for text in (
        "(floor 1.25)",
        "Fréchet distances not computed: 2 judged images are too few",
        "2 steps, 40 x 48 px",
    ):
        assert any(text in line for line in lines), text


def test_data_is_complete_and_valid_json(evaluation: Evaluation) -> None:
    def refuse(name: str) -> None:
        raise AssertionError(name)

    data = json.loads(to_json(as_dict(evaluation, {"model": "toy-sd3"})), parse_constant=refuse)
    assert data["settings"]["model"] == "toy-sd3"
    assert data["settings"]["prompts"] == ["a red circle", "a blue star"]
    assert data["identity"] == {"pipeline": "abc", "judge": None}
    assert {"torch", "diffusers", "commit", "processor", "cores", "sdtm_fx"} <= set(data["environment"])
    assert data["dense_macs"] == {"linear": 4e9, "total": 8e9}
    dense, merged = data["rows"][:2]
    assert dense["recipe"] is dense["variant"] is None
    assert dense["psnr"]["values"] == ["inf", "inf"]
    assert float(dense["psnr"]["mean"]) == math.inf
    assert merged["macs"] == {"linear": 0.5, "total": 0.5, "speedup": 2.0}
    assert merged["psnr"]["values"] == [20.0, 22.0]
    assert merged["psnr"]["mean"] == 21.0
    assert merged["error_growth"]["values"] == [[0.0, 0.1], [0.0, 0.2]]
    assert merged["error_growth"]["steps"][1]["mean"] == pytest.approx(0.15)
    assert merged["accuracy"]["all"]["mean"] == 0.5
    assert merged["right"] == [[True, True], [True, False]]
    assert merged["frechet_real"]["mean"] == 2.5
    assert merged["recipe"]["ratio"]["start"] == 0.5
    assert data["times"] == {row["label"]: 1.5 for row in data["rows"]}


def test_the_figure_is_drawn_and_equal_for_equal_data(evaluation: Evaluation, tmp_path: Path) -> None:
    for name in ("a.png", "b.png", "c.svg"):
        draw_figure(evaluation, tmp_path / name)
    assert (tmp_path / "a.png").read_bytes() == (tmp_path / "b.png").read_bytes()
    with Image.open(tmp_path / "a.png") as picture:
        assert picture.size == (1800, 720)
        assert len(picture.convert("RGB").getcolors(10**6) or []) > 20
    # Text is drawn as outlines there, each behind a comment that holds it.
    drawn = (tmp_path / "c.svg").read_text()
    for text in (
        "identical to dense: dense",
        "merge",
        "one identical",
        "PSNR to the dense image, dB",
        "denoising step",
    ):
        assert f"<!-- {text} -->" in drawn, text


def test_a_figure_of_dense_rows_alone_can_be_drawn(evaluation: Evaluation, tmp_path: Path) -> None:
    alone = Evaluation(evaluation.sampling, {}, evaluation.rows[:1])
    draw_figure(alone, tmp_path / "alone.png")
    assert (tmp_path / "alone.png").stat().st_size > 1000


def test_the_sheet_shows_every_row(evaluation: Evaluation) -> None:
    sheet = draw_sheet(evaluation)
    cell = evaluation.rows[0].images[0]
    corner = (sheet.width - 6 - 48 * 3, sheet.height - 6 - 40 * 3)
    shown = torch.tensor(sheet.getpixel((corner[0] + 1, corner[1] + 1)))
    expected = (evaluation.rows[-1].images[1, :, 0, 0] * 255).round().to(torch.int64)
    assert cell.shape == (3, 40, 48)
    assert torch.equal(shown, expected)


def test_large_images_are_shrunk_on_the_sheet(evaluation: Evaluation) -> None:
    sampling = Sampling(("a", "b"), (0, 1), 2, 256, 512, None, 2, 2, 0)
    rows = tuple(
        result(f"row {index}", "merge", 0, 0.5, images=torch.zeros(2, 3, 256, 512)) for index in range(2)
    )
    sheet = draw_sheet(Evaluation(sampling, {}, rows))
    assert sheet.width == 170 + 2 * (256 + 6)
