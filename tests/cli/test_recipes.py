"""`sdtm-fx recipes`."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from typer.testing import CliRunner

import sdtm_fx
from sdtm_fx.cli.main import app
from sdtm_fx.recipe import json_schema


def run(*arguments: str, code: int = 0) -> tuple[str, str]:
    result = CliRunner().invoke(app, list(arguments))
    assert result.exit_code == code, result.output
    return result.stdout, result.stderr


def test_list_names_every_recipe(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "200")
    out, _ = run("recipes", "list")
    assert all(name in out for name in sdtm_fx.list_recipes())
    assert "FluxTransformer2DModel" in out


def test_show_prints_yaml_that_loads_as_the_same_recipe() -> None:
    out, _ = run("recipes", "show", "flux.1-dev-attention")
    assert sdtm_fx.Recipe.from_yaml_text(out) == sdtm_fx.load_recipe("flux.1-dev-attention")


def test_an_unknown_name_is_an_error_with_the_nearest() -> None:
    out, err = run("recipes", "show", "sd3-medum", code=1)
    assert out == ""
    assert "RecipeError" in err
    assert "did you mean 'sd3-medium'?" in err


def test_validate_tells_good_files_from_bad(tmp_path: Path) -> None:
    good, bad = tmp_path / "good.yaml", tmp_path / "bad.yaml"
    good.write_text(sdtm_fx.load_recipe("sd3-medium-windows").to_yaml())
    bad.write_text(
        "version: 1\nname: bad\nextends: sd3-medium-windows\nratoi: {curve: constant, start: 0.5}\n"
    )
    out, _ = run("recipes", "validate", str(good))
    assert f"{good}: sd3-medium-windows is valid" in out
    out, err = run("recipes", "validate", str(bad), str(good), code=1)
    assert "sd3-medium-windows is valid" in out
    assert "bad.yaml:4" in err
    assert "did you mean 'ratio'?" in err


def test_schema_is_the_json_schema() -> None:
    out, _ = run("recipes", "schema")
    assert json.loads(out) == json.loads(json.dumps(json_schema()))


def test_help_names_every_command() -> None:
    out, _ = run("--help")
    assert all(word in out for word in ("demo", "explain", "recipes"))
