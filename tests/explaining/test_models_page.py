"""The page of all models: what recipes merge in them, and what a step costs."""

from __future__ import annotations

from pathlib import Path

import pytest
from typer.testing import CliRunner

from sdtm_fx.bench.models import ModelClass
from sdtm_fx.cli.main import app
from sdtm_fx.explaining.models_page import choose_recipes, family_recipes, models_page
from sdtm_fx.explaining.shapes import PUBLISHED, TOYS, shape_of
from sdtm_fx.recipe import list_recipes, load_recipe

PAGE = Path(__file__).parents[2] / "docs" / "models.md"


def run(*arguments: str, code: int = 0) -> str:
    result = CliRunner().invoke(app, ["recipes", "table", *arguments])
    assert result.exit_code == code, result.output
    return result.output


def rows_of(page: str) -> list[str]:
    return [line for line in page.splitlines() if line.startswith("| `")]


def test_two_models_are_as_on_the_page(tmp_path: Path) -> None:
    wanted = ("dit-xl-2", "sana")
    run(*wanted, "--out", str(tmp_path / "page.md"))
    written = (tmp_path / "page.md").read_text(encoding="utf-8")
    page = rows_of(PAGE.read_text(encoding="utf-8"))
    assert rows_of(written) == [row for row in page if row.split("`")[1] in wanted]
    assert [row.split("`")[1] for row in rows_of(written)] == [
        "dit-xl-2",
        "sana",
        *wanted[:1] * 2,
        *wanted[1:] * 2,
    ]


@pytest.mark.slow
def test_the_page_is_written_from_the_recipes() -> None:
    assert PAGE.read_text(encoding="utf-8") == models_page(family_recipes())


def test_the_page_has_every_family_at_every_size() -> None:
    page = PAGE.read_text(encoding="utf-8")
    rows = [row.split("`")[1] for row in rows_of(page)]
    sizes = [name for name in family_recipes() for _ in PUBLISHED[shape_of(name)].sized_grids]
    assert rows == [*family_recipes(), *sizes]


def test_every_recipe_has_a_published_model_of_its_class() -> None:
    for name in list_recipes():
        shape = shape_of(name)
        if shape in TOYS:
            continue
        build = PUBLISHED[shape].build
        assert isinstance(build, ModelClass)
        assert build.name in load_recipe(name).model, (name, shape)


def test_every_published_model_has_a_recipe() -> None:
    assert {shape_of(name) for name in family_recipes()} == set(PUBLISHED)


def test_a_recipe_that_is_not_on_the_page_is_an_error_with_the_nearest() -> None:
    assert choose_recipes(["sana"]) == ("sana",)
    text = run("sanaa", code=1).replace("\n", " ")
    assert "table: found recipe 'sanaa' (did you mean 'sana'?); accepted: auraflow, " in text
