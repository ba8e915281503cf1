"""pyproject.toml lists every folder: a forgotten one works in the checkout and is missing in the wheel."""

from __future__ import annotations

import subprocess
import sys
from importlib import resources
from pathlib import Path
from typing import Any

import pytest

import sdtm_fx
from tests.packaging.tree import FOLDERS, ROOT

tomllib = pytest.importorskip("tomllib", reason="tomllib came with Python 3.11")


@pytest.fixture(scope="module")
def setuptools_table() -> dict[str, Any]:
    return tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["tool"]["setuptools"]


def packages_of_the_checkout() -> dict[str, str]:
    """Package name to folder, for every folder with Python files."""
    found = {}
    for folder, inside in FOLDERS.items():
        for path in (ROOT / folder).rglob("*.py"):
            if "__pycache__" not in path.parts:
                relative = path.parent.relative_to(ROOT / folder).as_posix()
                name = ".".join([*inside.split("/"), *(relative.split("/") if relative != "." else [])])
                found[name] = path.parent.relative_to(ROOT).as_posix()
    return found


def test_every_folder_with_python_files_is_a_listed_package(setuptools_table: dict[str, Any]) -> None:
    assert sorted(setuptools_table["packages"]) == sorted(packages_of_the_checkout())


def test_every_mapped_package_points_at_its_folder(setuptools_table: dict[str, Any]) -> None:
    mapped = setuptools_table["package-dir"]
    for name, folder in packages_of_the_checkout().items():
        owner = max((m for m in mapped if name == m or name.startswith(f"{m}.")), key=len)
        rest = name[len(owner) :].replace(".", "/")
        assert mapped[owner] + rest == folder


def test_every_package_folder_has_an_init() -> None:
    for folder in packages_of_the_checkout().values():
        assert (ROOT / folder / "__init__.py").is_file(), folder


def test_every_recipe_and_pass_is_reached_through_the_package() -> None:
    recipes = {
        p.relative_to(ROOT / "recipes").with_suffix("").as_posix() for p in (ROOT / "recipes").rglob("*.yaml")
    }
    assert set(sdtm_fx.list_recipes()) == recipes
    passes = {p.name for p in (ROOT / "passes").glob("*.py")}
    assert {p.name for p in resources.files("sdtm_fx.passes").iterdir() if p.name.endswith(".py")} == passes
    assert resources.files("sdtm_fx").joinpath("py.typed").is_file()


def test_passes_cannot_be_imported_under_its_folder_name(tmp_path: Path) -> None:
    code = f"import sys; sys.path.insert(0, {str(ROOT)!r}); import passes"
    result = subprocess.run(
        [sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True, check=False
    )
    assert result.returncode == 1
    assert "ImportError: import sdtm_fx.passes, not passes" in result.stderr
