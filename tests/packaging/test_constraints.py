"""constraints.txt pins every package that pyproject.toml asks for, inside the range that it asks for."""

from __future__ import annotations

import re
import shutil
import subprocess
from typing import Any

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from tests.packaging.tree import ROOT

tomllib = pytest.importorskip("tomllib", reason="tomllib came with Python 3.11")


def pins() -> dict[str, str]:
    lines = (ROOT / "constraints.txt").read_text(encoding="utf-8").splitlines()
    found = [Requirement(line) for line in lines if line and not line.startswith("#")]
    return {canonicalize_name(r.name): str(r.specifier).removeprefix("==") for r in found}


def test_every_requirement_is_pinned_in_its_range() -> None:
    text = (ROOT / "pyproject.toml").read_text(encoding="utf-8")
    project: dict[str, Any] = tomllib.loads(text)["project"]
    extras = project["optional-dependencies"].values()
    wanted = [*project["dependencies"], *(requirement for extra in extras for requirement in extra)]
    pinned = pins()
    for requirement in map(Requirement, wanted):
        if canonicalize_name(requirement.name) != "sdtm-fx":
            assert requirement.specifier.contains(pinned[canonicalize_name(requirement.name)]), requirement


def test_torch_is_pinned_without_a_build() -> None:
    assert re.fullmatch(r"\d+\.\d+\.\d+", pins()["torch"])


@pytest.mark.skipif(shutil.which("make") is None, reason="make is not installed")
@pytest.mark.parametrize(
    ("target", "steps"),
    [
        ("test", ["-m venv", "[dev]", "ruff check .", "ruff format --check .", "mypy", "-m pytest"]),
        ("demo", ["-m venv", "[demo]", "sdtm-fx demo --out demo_output"]),
    ],
)
def test_the_two_commands_set_up_and_run_all_they_need(target: str, steps: list[str]) -> None:
    command = ["make", "--dry-run", "--directory", str(ROOT), target, "VENV=no-such-folder"]
    planned = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    places = [planned.find(step) for step in steps]
    assert -1 not in places
    assert places == sorted(places)
