"""Benchmarks of a model that is not among the published ones, from its config."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from diffusers import SD3Transformer2DModel
from typer.testing import CliRunner

import sdtm_fx
from sdtm_fx.bench.configs import MODELS, resized
from sdtm_fx.bench.own import own_model
from sdtm_fx.cli.main import app
from sdtm_fx.errors import InspectionError, RewriteError
from tests.inspecting.models import write_config
from tests.pipelines import tiny_sd3_transformer


def test_a_config_tells_which_fields_count_blocks(tmp_path: Path) -> None:
    tiny_sd3_transformer(layers=3).save_config(tmp_path)
    for path in (tmp_path, tmp_path / "config.json"):
        model = own_model(path)
        assert (model.build, model.layers) == (SD3Transformer2DModel, ("num_layers",))
        assert (model.pixels, model.text, model.halves) == (16, 77, 1)


def test_sizes_of_the_call_may_be_given() -> None:
    model = MODELS["sd3-medium"]
    assert resized(model, None, None, None) == model
    other = resized(model, 32, 20, 1)
    assert (other.pixels, other.text, other.halves, other.config) == (32, 20, 1, model.config)


def test_configs_that_cannot_be_built_in_part(tmp_path: Path) -> None:
    flat = write_config(tmp_path, {"_class_name": "PriorTransformer", "embedding_dim": 8}, "flat.json")
    with pytest.raises(RewriteError, match=r"flat\.json: no field counts blocks .* it has embedding_dim"):
        own_model(flat)
    with pytest.raises(InspectionError, match="found no such file or folder; accepted"):
        own_model(tmp_path / "nothing.json")


def run(tmp_path: Path, *arguments: str) -> tuple[int, str, dict[str, Any]]:
    out = tmp_path / "bench.json"
    command = ["bench", "--height", "128", "--width", "128", "--runs", "1", "--out", str(out), *arguments]
    result = CliRunner().invoke(app, command)
    return result.exit_code, result.output, json.loads(out.read_text()) if out.is_file() else {}


def test_the_command_times_a_config(tmp_path: Path) -> None:
    tiny_sd3_transformer(layers=3).save_config(tmp_path)
    config, mine = str(tmp_path / "config.json"), tmp_path / "mine.yaml"
    mine.write_text(sdtm_fx.load_recipe("toy-sd3-windows").to_yaml(), encoding="utf-8")
    code, output, record = run(
        tmp_path, "--config", config, "--recipe", str(mine), "--text", "5", "--halves", "2"
    )
    assert code == 0, output
    assert [(s["tokens"], s["kept"] < 64) for s in record["stages"]] == [(64, True), (64, True)]
    assert record["title"].startswith(config)
    assert "--text 5 --halves 2" in record["command"]
    code, output, _ = run(tmp_path, "--config", config)
    assert code == 1
    assert "recipe: none is named like" in output
    assert "(--recipe)" in output
