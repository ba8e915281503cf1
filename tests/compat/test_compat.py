"""The compatibility job: what it reads from pytest, what it writes, and that its data and page fit the project."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.specifiers import SpecifierSet
from packaging.version import Version

import sdtm_fx
from sdtm_fx.bench.models import ModelClass
from sdtm_fx.errors import InspectionError
from tests.compat.classes import why_absent
from tests.compat.environments import ROOT, Compatibility, read_compatibility
from tests.compat.outcome import Outcome, Row, read_rows
from tests.compat.page import PACKAGES, PAGE, cell, page, read_outcomes, rows_of, write_outcome
from tests.families.cases import FAMILIES

TESTS = """
import pytest

@pytest.fixture
def about(request):
    request.node.user_properties.append(("recipe", request.param))
    if request.param == "young":
        pytest.skip("YoungModel exists since diffusers 0.40.0")

@pytest.mark.parametrize("about", ["fine", "broken", "young"], indirect=True)
def test_a_model(about, request):
    assert "broken" not in request.node.name, "one\\ntwo"

def test_without_a_recipe():
    pytest.skip("no such device")
"""
MADE_UP = Compatibility(
    environments={"oldest": ("torch==1",), "newest": ("torch==2",)},
    matrix={"what else": ("test_made_up.py", "test_not_there.py", "test_no_python.py")},
    since={"YoungModel": "0.40.0"},
)


@pytest.fixture(scope="module")
def rows(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Row]:
    """What a run of pytest on made-up tests said."""
    folder = tmp_path_factory.mktemp("made_up")
    (folder / "test_made_up.py").write_text(TESTS)
    (folder / "test_no_python.py").write_text("import no_such_module")
    arguments = ["-q", "-p", "no:cacheprovider", "--continue-on-collection-errors", "--junit-xml=report.xml"]
    ran = subprocess.run(
        [sys.executable, "-m", "pytest", *arguments], cwd=folder, capture_output=True, check=False
    )
    assert ran.returncode == 1
    return read_rows(folder / "report.xml", MADE_UP)


def outcome(rows: dict[str, Row]) -> Outcome:
    return Outcome(
        asked=("torch==1",),
        date="2026-01-02",
        commit="a" * 40 + "-dirty",
        python="3.11",
        packages=dict.fromkeys(PACKAGES, "1.0"),
        minutes=2.5,
        rows=rows,
    )


def test_every_test_counts_in_the_row_of_its_recipe(rows: dict[str, Row]) -> None:
    assert rows["fine"] == Row(passed=1)
    (failure,) = rows["broken"].failures
    assert failure == "test_a_model[broken]: AssertionError: one"
    assert rows["young"] == Row(absent="YoungModel exists since diffusers 0.40.0")
    assert rows["what else"].skipped == ["test_without_a_recipe: no such device"]
    (failure,) = rows["what else"].failures
    assert failure == "test_no_python: ModuleNotFoundError: No module named 'no_such_module'"


def test_cells(rows: dict[str, Row]) -> None:
    assert cell(rows["fine"]) == "works"
    assert cell(rows["young"]) == "class since 0.40.0"
    assert cell(rows["broken"]) == "**fails**: test_a_model[broken]: AssertionError: one"
    assert cell(Row(passed=3, failures=["a: b | c", "d"])) == r"**fails**: a: b \| c, and 1 more"
    assert cell(None) == "not run"


def test_the_page_tells_what_was_read(rows: dict[str, Row], tmp_path: Path) -> None:
    said = outcome(rows)
    write_outcome("oldest", said, tmp_path)
    write_outcome("newest", said, tmp_path)
    assert not said.works
    assert read_outcomes(MADE_UP, tmp_path) == {"oldest": said, "newest": None}, "not of these versions"
    text = page({"a": said, "b": outcome({"fine": Row(passed=2)}), "c": None}, ("fine", "young", "what else"))
    assert "\n| `fine` | works | works | not run |\n" in text
    assert "\n| `young` | class since 0.40.0 | not run | not run |\n" in text
    assert "\n| tests passed | 1 | 2 | not run |\n" in text
    assert "\n| commit | aaaaaaaa-dirty | aaaaaaaa-dirty | not run |\n" in text
    assert text.endswith("\n- a: test_without_a_recipe: no such device\n")


def test_a_class_that_should_be_there_is_not_skipped() -> None:
    since = {"YoungModel": "0.40.0"}
    assert why_absent(["YoungModel"], "0.39.2", since) == "YoungModel exists since diffusers 0.40.0"
    with pytest.raises(LookupError, match=r"diffusers 0\.40\.0 has no YoungModel; .*: since 0\.40\.0"):
        why_absent(["YoungModel"], "0.40.0", since)
    with pytest.raises(LookupError, match=r"0\.39\.2 has no OtherModel, and environments\.yaml does not say"):
        why_absent(["YoungModel", "OtherModel"], "0.39.2", since)


def test_a_module_that_is_in_no_row() -> None:
    assert MADE_UP.row_of("test_made_up.TestClass") == "what else"
    with pytest.raises(
        LookupError, match=r"test_made_up_too: found in no row of .*; accepted: test_made_up\.py"
    ):
        MADE_UP.row_of("test_made_up_too")


def test_the_environments_are_the_ends_of_the_ranges() -> None:
    text = (ROOT / "pyproject.toml").read_text(encoding="utf-8")
    pins = {
        name: {Requirement(each).name: Requirement(each).specifier for each in asked if "==" in each}
        for name, asked in read_compatibility().environments.items()
    }
    for package in ("torch", "diffusers"):
        (line,) = re.findall(rf'^    "{package}([<>=][^"]*)",$', text, re.MULTILINE)
        ends = {each.operator: Version(each.version) for each in SpecifierSet(line)}
        oldest, newest = (Version(str(pins[name][package])[2:]) for name in ("oldest", "newest"))
        assert oldest == Version(f"{ends['>=']}.0")
        assert Version(f"{newest.major}.{newest.minor + 1}") == ends["<"]


def test_the_data_name_what_is_there() -> None:
    compatibility = read_compatibility()
    assert all((ROOT / file).is_file() for file in compatibility.paths)
    shipped = {name for recipe in sdtm_fx.list_recipes() for name in sdtm_fx.load_recipe(recipe).model}
    assert set(compatibility.since) <= shipped


def test_the_page_has_every_family_and_environment_and_is_what_the_results_say() -> None:
    compatibility = read_compatibility()
    outcomes, rows = read_outcomes(compatibility), rows_of(compatibility)
    written = PAGE.read_text(encoding="utf-8")
    assert written == page(outcomes, rows), "make compat COMPAT=--only-page writes it anew"
    assert all(f"\n| `{case.recipe_name}` | " in written for case in FAMILIES)
    assert f"\n|  | {' | '.join(compatibility.environments)} |\n" in written
    assert any(outcome is not None for outcome in outcomes.values())


def test_a_recipe_of_a_model_that_this_diffusers_has_not_still_loads() -> None:
    recipe = sdtm_fx.load_recipe("sana").override({"model": ["YoungTransformer2DModel"]})
    assert recipe.model == ("YoungTransformer2DModel",)
    with pytest.raises(
        InspectionError, match=r"found no YoungTransformer2DModel in diffusers \d.*; accepted: a vers"
    ):
        ModelClass("YoungTransformer2DModel")()
