"""`sdtm-fx bench` from the options to the record."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from typer.testing import CliRunner

from sdtm_fx.bench import configs, run
from sdtm_fx.cli import bench as command
from sdtm_fx.cli.main import app


def benchmark(tmp_path: Path, *arguments: str) -> tuple[dict[str, Any], str]:
    out = tmp_path / "bench.json"
    result = CliRunner().invoke(
        app, ["bench", "--height", "128", "--width", "128", "--runs", "1", "--out", str(out), *arguments],
        catch_exceptions=False,
    )  # fmt: skip
    assert result.exit_code == 0, result.output
    return json.loads(out.read_text()), result.output


def test_it_writes_a_record(small_sd3: configs.BenchModel, tmp_path: Path) -> None:
    record, output = benchmark(tmp_path, "--recipe", "sd3-medium-windows")
    assert record["torch"] == torch.__version__
    assert [s["stage"] for s in record["stages"]] == ["structure", "detail"]
    assert record["stages"][0]["merged_bytes"] is None
    assert record["peak_memory"] == "not counted on a CPU"
    assert "efficiency" in output
    assert not (tmp_path / "bench.png").exists()


def test_the_help_names_every_model() -> None:
    assert [*configs.MODELS] == command._MODELS.split(", ")


@pytest.mark.slow
def test_growth_is_fitted_and_drawn(
    small_flux: configs.BenchModel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(run, "PIXELS", (128, 256))
    monkeypatch.setattr(run, "DEPTHS", (1,))
    record, output = benchmark(
        tmp_path, "--model", "flux.1-dev", "--recipe", "flux.1-dev-merge", "--layers", "1,2", "--growth"
    )
    assert [s["plans"] for s in record["stages"]] == [3, 3]
    fits = record["growth"]["fits"]
    assert [(fit["stage"], fit["tokens"]) for fit in fits] == [
        ("structure", [64, 256]),
        ("detail", [64, 256]),
    ]
    assert all(isinstance(fit["exponent"], float) and isinstance(fit["is_linear"], bool) for fit in fits)
    assert [(depth["blocks"], depth["structures"]) for depth in record["depths"]] == [(2, 2)]
    assert (tmp_path / "bench.png").stat().st_size > 1000
    assert "exponent" in output


@pytest.mark.slow
@pytest.mark.compile
def test_a_whole_schedule_is_compiled_and_weighed(small_sd3: configs.BenchModel, tmp_path: Path) -> None:
    record, output = benchmark(
        tmp_path, "--recipe", "sd3-medium-merge", "--compile", "--steps", "12", "--parts", "--ratio", "0.5"
    )
    assert record["start"] == "as found"
    schedule = record["schedule"]
    assert sum(phase["steps"] for phase in schedule["phases"]) == 12
    assert schedule["theoretical"] > 1
    assert schedule["efficiency"] == schedule["measured"] / schedule["theoretical"]
    labels = [phase["label"] for phase in schedule["phases"]]
    assert any("structure" in label for label in labels)
    assert any("detail" in label for label in labels)
    shares = record["breakdown"]["structure"]
    assert sum(shares.values()) == pytest.approx(1)
    assert set(shares) == {"plan", "merge", "unmerge", "features", "rest"}
    assert {part["stage"] for part in record["parts"]} == {"structure", "detail"}
    for plan, stage in zip(record["plan_shares"], record["stages"], strict=True):
        expected = stage["plans"] * plan["plan_seconds"] / stage["merged_seconds"]
        assert plan["share"] == pytest.approx(expected)
    assert "plans in the call" in output
