"""`sdtm-fx explain`."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from sdtm_fx.cli.main import app
from sdtm_fx.toy.random_pipelines import tiny_sd3_transformer


def run(*arguments: str, code: int = 0) -> tuple[str, str]:
    result = CliRunner().invoke(app, ["explain", *arguments])
    assert result.exit_code == code, result.output
    return result.stdout, result.stderr


def explained(*arguments: str) -> dict[str, Any]:
    data: dict[str, Any] = json.loads(run(*arguments, "--json")[0])
    return data


@pytest.mark.slow
def test_it_uses_the_published_shape_that_the_recipe_is_named_for() -> None:
    data = explained("sd3-medium", "--steps", "8", "--height", "16", "--width", "24")
    assert (data["model"], data["blocks"], data["structures"]) == ("SD3Transformer2DModel", 24, 3)
    assert (data["steps"], data["grid"], data["batch"], data["text"]) == (8, [16, 24], 2, 333)
    assert 0 < data["mean"]["linear"] < data["dense"]["linear"]


def test_it_prints_tables_for_the_toy() -> None:
    out, _ = run("toy-sd3", "--height", "16", "--width", "16")
    assert out.startswith("shape: toy-sd3")
    assert "recipe toy-sd3: 6 blocks" in out
    out, _ = run("toy-flux", "--height", "16", "--width", "16")
    assert out.startswith("shape: toy-flux")
    assert "recipe toy-flux: 6 blocks" in out
    assert "Merged sites" in out


def test_it_builds_a_model_from_a_diffusers_config(tmp_path: Path) -> None:
    tiny_sd3_transformer(layers=3).save_config(tmp_path)
    recipe = tmp_path / "mine.yaml"
    recipe.write_text("version: 1\nname: mine\nextends: toy-sd3-windows\n")
    data = explained(str(recipe), "--config", str(tmp_path / "config.json"), "--height", "8", "--width", "8")
    assert (data["blocks"], data["recipe"], data["batch"]) == (3, "mine", 1)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (
            ("toy-sd3", "--model", "sd3-medum"),
            r"no shape 'sd3-medum' (did you mean 'sd3-medium'?); accepted: ",
        ),
        (("toy-sd3", "--config", "nowhere.json"), "nowhere.json: no such file"),
        (("sd3-medium", "--model", "flux.1-dev"), "is for SD3Transformer2DModel, this model is a Flux"),
    ],
)
def test_wrong_arguments_say_what_is_accepted(arguments: tuple[str, ...], message: str) -> None:
    _, err = run(*arguments, code=1)
    assert message in err


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("{", "not JSON"),
        ("[]", "_class_name is None"),
        ('{"_class_name": "SD4"}', "_class_name is 'SD4', which is no model class of diffusers"),
        ('{"_class_name": "StableDiffusion3Pipeline"}', "which is no model class of diffusers"),
    ],
)
def test_a_config_that_names_no_model_is_an_error(tmp_path: Path, text: str, message: str) -> None:
    config = tmp_path / "config.json"
    config.write_text(text)
    _, err = run("toy-sd3", "--config", str(config), code=1)
    assert message in err


def test_a_recipe_without_a_published_shape_asks_for_one(tmp_path: Path) -> None:
    recipe = tmp_path / "mine.yaml"
    recipe.write_text("version: 1\nname: mine\nextends: sd3-medium-windows\n")
    _, err = run(str(recipe), code=1)
    assert "no published shape for recipe 'mine'; give --model (auraflow, " in err


@pytest.mark.slow
def test_a_recipe_for_videos_asks_for_frames(tmp_path: Path) -> None:
    config = {"_class_name": "WanTransformer3DModel", "num_layers": 40, "num_attention_heads": 2,
              "attention_head_dim": 12, "text_dim": 8, "ffn_dim": 16, "freq_dim": 8}  # fmt: skip
    path = tmp_path / "config.json"
    path.write_text(json.dumps(config))
    size = ("--steps", "4", "--height", "4", "--width", "6", "--text", "7")
    data = explained("wan2.1-t2v-14b", "--config", str(path), *size, "--frames", "4")
    assert data["grid"] == [4, 4, 6]
    _, error = run("wan2.1-t2v-14b", "--config", str(path), *size, code=1)
    assert "found a grid of 4x6 tokens; this recipe accepts (frames, height, width)" in " ".join(
        error.split()
    )
