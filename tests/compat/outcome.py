"""What the tests of one environment said, row by row, from the XML that pytest writes."""

from __future__ import annotations

from pathlib import Path
from xml.etree import ElementTree

from pydantic import BaseModel, ConfigDict

from tests.compat.classes import RECIPE, SINCE
from tests.compat.environments import Compatibility


class Row(BaseModel):
    """The tests of one row.

    Attributes:
        passed: How many passed.
        absent: Since when the model class exists, where this diffusers is too old for it.
        failures: One line for every test that failed.
        skipped: One line for every test that was skipped for another reason.
    """

    model_config = ConfigDict(extra="forbid")

    passed: int = 0
    absent: str = ""
    failures: list[str] = []
    skipped: list[str] = []


class Outcome(BaseModel):
    """The whole run.

    Attributes:
        asked: What pip was told.
        date: Day of the run.
        commit: What was tested.
        python: Version of Python.
        packages: Versions of all installed packages.
        minutes: How long the tests took.
        rows: By recipe, or by row of `environments.yaml`.
    """

    model_config = ConfigDict(extra="forbid")

    asked: tuple[str, ...]
    date: str
    commit: str
    python: str
    packages: dict[str, str]
    minutes: float
    rows: dict[str, Row]

    @property
    def works(self) -> bool:
        """Whether no test failed."""
        return not any(row.failures for row in self.rows.values())


def read_rows(report: Path, compatibility: Compatibility) -> dict[str, Row]:
    """Read pytest's ``--junit-xml``.

    Raises:
        LookupError: A test is in no file of the matrix.
    """
    rows: dict[str, Row] = {}
    for test in ElementTree.parse(report).iter("testcase"):
        # What fails while it is collected has no class name, and the module in place of the test's name.
        module, name = test.get("classname") or test.get("name", ""), test.get("name", "")
        row = rows.setdefault(_recipe_of(test) or compatibility.row_of(module), Row())
        problems = [each for each in test if each.tag in ("failure", "error")]
        skip = test.find("skipped")
        if problems:
            row.failures.append(f"{name}: {_reason(problems[0])}")
        elif skip is None:
            row.passed += 1
        elif SINCE in skip.get("message", ""):
            row.absent = skip.get("message", "")
        else:
            row.skipped.append(f"{name}: {skip.get('message', '')}")
    return rows


def _recipe_of(test: ElementTree.Element) -> str | None:
    named = (each.get("value") for each in test.iter("property") if each.get("name") == RECIPE)
    return next(named, None)


def _reason(problem: ElementTree.Element) -> str:
    """The first line of the error: pytest marks those of a traceback with an E."""
    marked = [line[1:].strip() for line in (problem.text or "").splitlines() if line.startswith("E ")]
    return marked[0] if marked else problem.get("message", "").partition("\n")[0]
