"""What recipes after publications cost, and the page that says so."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

import sdtm_fx
from sdtm_fx.cli.main import app
from sdtm_fx.cost.counter import Macs
from sdtm_fx.errors import RewriteError
from sdtm_fx.explaining.budgets import count_budget
from sdtm_fx.explaining.budgets_page import budgets_page
from sdtm_fx.explaining.published import ABSENT, ROWS
from sdtm_fx.explaining.shapes import build_shape, shape_of

PAGE = Path(__file__).parents[2] / "docs" / "baselines.md"


def run(*arguments: str, code: int = 0) -> str:
    result = CliRunner().invoke(app, ["recipes", "budgets", *arguments])
    assert result.exit_code == code, result.output
    return result.output


def rows_of(page: str) -> dict[str, list[str]]:
    """Cells by recipe."""
    cells = [line[2:-2].split(" | ") for line in page.splitlines() if line.startswith("| `")]
    return {row[0].strip("`"): row[1:] for row in cells if len(row) > 2}


def test_two_rows_are_those_of_the_page(tmp_path: Path) -> None:
    wanted = ("baselines/fora-sd3-medium", "baselines/todo-sd3-medium")
    run(*wanted, "--out", str(tmp_path / "page.md"))
    written = (tmp_path / "page.md").read_text(encoding="utf-8")
    ours, page = rows_of(written), rows_of(PAGE.read_text(encoding="utf-8"))
    assert list(ours) == list(wanted)
    assert all(ours[name] == page[name] for name in wanted)
    assert "Dense: 6.01 and 8.90 T, with 333 text tokens and both guidance halves." in written
    # All but the dense steps cost what attention and feed-forward of the image leave.
    assert float(ours[wanted[0]][4]) == pytest.approx(17 / 50, abs=0.05)
    assert ours[wanted[1]][4] == "1.000", "fewer keys are no fewer rows of a linear layer"


@pytest.mark.slow
def test_the_page_is_written_from_the_recipes() -> None:
    assert PAGE.read_text(encoding="utf-8") == budgets_page(ROWS)


def test_the_page_has_every_row_and_meets_the_figures() -> None:
    page = PAGE.read_text(encoding="utf-8")
    rows = rows_of(page)
    assert list(rows) == [row.recipe for row in ROWS]
    assert all(f"| {what} | {why} |" in page for what, why in ABSENT)
    for row in ROWS:
        if row.figure is None:
            assert rows[row.recipe][-2:] == ["", ""], row.recipe
        else:
            # TaylorSeer forecasts text too; here text goes through its own feed-forwards at every step.
            most = 9 if "taylorseer" in row.recipe else 3
            assert abs(float(rows[row.recipe][-1].rstrip("% "))) <= most, row.recipe


def test_a_recipe_without_a_row_is_an_error_with_the_nearest() -> None:
    text = run("baselines/tome-sd3-medum", code=1)
    assert "budgets: found recipe 'baselines/tome-sd3-medum'" in text.replace("\n", " ")
    assert "did you mean 'baselines/tome-sd3-medium'?" in text.replace("\n", " ")


@pytest.mark.parametrize(
    ("recipe", "shape"),
    [
        ("sd3-medium", "sd3-medium"),
        ("sd3.5-large-turbo", "sd3.5-large-turbo"),
        ("sd3.5-large-forecast", "sd3.5-large"),
        ("paper/flux.1-dev", "flux.1-dev"),
        ("flux.1-schnell", "flux.1-schnell"),
        ("flux.1-krea", "flux.1-dev"),
        ("baselines/at-edm-sdxl", "sdxl"),
        ("baselines/tome-toy-flux", "toy-flux"),
        ("toy-sd3", "toy-sd3"),
    ],
)
def test_a_recipe_is_for_the_shape_that_its_name_ends_or_begins_with(recipe: str, shape: str) -> None:
    assert shape_of(recipe) == shape


def test_no_shape_is_an_error() -> None:
    with pytest.raises(RewriteError, match="no published shape for recipe 'mine'; give --model"):
        shape_of("mine")
    with pytest.raises(RewriteError, match=r"no shape 'sdlx' \(did you mean 'sdxl'\?\); accepted: "):
        build_shape("sdlx")


@pytest.mark.slow
def test_images_decide_no_more_than_the_least_that_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    """On a small model of the toy's class: a threshold counts as the most that it may remove."""
    from sdtm_fx.bench.configs import BenchModel
    from sdtm_fx.explaining import budgets
    from tests.pipelines import tiny_sd3_transformer

    small: Any = BenchModel(type(tiny_sd3_transformer(layers=2)), {}, (), 16, 5, 2)
    monkeypatch.setitem(budgets.PUBLISHED, "small", small)
    base = sdtm_fx.load_recipe("baselines/ca-tome-toy-sd3").override(
        {"plan.round_to": 1, "plan.every_steps": 1}
    )
    dense = Macs(1e9, 1e9)
    adaptive = count_budget(base, "small", tiny_sd3_transformer(layers=2), 4, 128, dense)
    fixed = base.override(ratio={"curve": "constant", "start": 0.75})
    most = count_budget(fixed, "small", tiny_sd3_transformer(layers=2), 4, 128, dense)
    assert (adaptive.decided, most.decided) == (False, True)
    assert adaptive.macs.linear == most.macs.linear < dense.linear
    assert adaptive.last == most.last
