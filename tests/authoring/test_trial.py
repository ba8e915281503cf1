"""Drafts for classes that no shipped recipe is for: they work as they were written."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from torch import nn
from typer.testing import CliRunner

import sdtm_fx
from sdtm_fx.authoring.author import author
from sdtm_fx.authoring.trial import try_draft
from sdtm_fx.cli.main import app
from sdtm_fx.errors import InspectionError
from sdtm_fx.inspecting.inspect import survey
from sdtm_fx.inspecting.survey import Survey
from tests.inspecting.models import UNSHIPPED, subject_of, unshipped
from tests.pipelines import tiny_sd3_transformer


@pytest.fixture(scope="module")
def sd3() -> Survey:
    return survey(subject_of(tiny_sd3_transformer(layers=2)))


@pytest.mark.slow
@pytest.mark.parametrize("kind", UNSHIPPED, ids=lambda kind: kind.__name__)
def test_a_class_without_a_recipe_gets_one_that_works(kind: type[nn.Module], tmp_path: Path) -> None:
    assert all(kind.__name__ not in sdtm_fx.load_recipe(name).model for name in sdtm_fx.recipe.list_recipes())
    draft = author(survey(unshipped(kind)), tmp_path / "mine.yaml")
    assert [(check.name, check.passed) for check in draft.checks] == [
        ("loads", True), ("runs", True), ("ratio 0", True), ("ratio 0.5", True),
    ]  # fmt: skip
    assert "4 modules keep about half of the image tokens: 512 -> 25" in draft.checks[-1].says
    assert sdtm_fx.load_recipe(tmp_path / "mine.yaml").model == (kind.__name__,)


@pytest.mark.slow
def test_the_command_writes_a_draft_and_says_how_it_went(tmp_path: Path) -> None:
    tiny_sd3_transformer(layers=2).save_config(tmp_path)
    result = CliRunner().invoke(
        app, ["author", str(tmp_path), "-o", str(tmp_path / "mine.yaml"), "--name", "my/draft"]
    )
    assert result.exit_code == 0, result.output
    assert "ratio 0: bit for bit the plain model" in result.output
    assert re.search(r"unsure, line \d+: whether its pipeline stacks both halves", result.output)
    assert sdtm_fx.load_recipe(tmp_path / "mine.yaml").name == "my/draft"


def test_a_draft_that_does_not_load_is_named(sd3: Survey, tmp_path: Path) -> None:
    path = tmp_path / "mine.yaml"
    path.write_text("version: 1\nname: mine\n")
    (check,) = try_draft(path, sd3, 2)
    assert (check.name, check.passed) == ("loads", False)
    assert "RecipeError" in check.says


def test_a_draft_whose_sites_are_not_there_fails_at_the_first_run(sd3: Survey, tmp_path: Path) -> None:
    path = tmp_path / "mine.yaml"
    path.write_text("version: 1\nname: mine\nextends: toy-sd3-windows\nsites: {ff: {match: nowhere.ff}}\n")
    checks = try_draft(path, sd3, 2)
    assert [check.passed for check in checks] == [True, True, False]
    assert "NothingMatched" in checks[-1].says


def test_a_command_whose_draft_fails_exits_with_1(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    from sdtm_fx.authoring import author as module
    from sdtm_fx.authoring.running import Check

    monkeypatch.setattr(
        module, "try_draft", lambda *_: [Check("ratio 0", False, "differs from the plain model by 1")]
    )
    tiny_sd3_transformer(layers=1).save_config(tmp_path)
    result = CliRunner().invoke(app, ["author", str(tmp_path), "-o", str(tmp_path / "mine.yaml")])
    assert result.exit_code == 1
    assert "which does not work yet: edit what the last check names" in result.output
    assert (tmp_path / "mine.yaml").is_file()


def test_a_recipe_is_a_yaml_file(sd3: Survey, tmp_path: Path) -> None:
    with pytest.raises(InspectionError, match=r"a recipe is a file that ends in \.yaml"):
        author(sd3, tmp_path / "mine.txt")
