"""One environment: installed, tested, and taken away."""

from __future__ import annotations

import datetime
import json
import shutil
import subprocess
import sys
import time
import venv
from pathlib import Path

from tests.compat.environments import ROOT, Compatibility
from tests.compat.outcome import Outcome, read_rows

_TESTS_FAILED = 1


def run(name: str, compatibility: Compatibility, folder: Path, *, keep: bool = False) -> Outcome:
    """Install the versions of an environment and run the matrix with them.

    Args:
        name: Of the environment.
        compatibility: What it holds and what is run.
        folder: Where environments are made.
        keep: Leave it there, and take the one that is there.

    Raises:
        subprocess.CalledProcessError: pip found no such versions, or pytest ran no test.
    """
    place, asked = folder / name, compatibility.environments[name]
    commit = _call("git", "describe", "--always", "--dirty", "--abbrev=40").strip()
    if not (keep and place.is_dir()):
        venv.create(place, with_pip=True, clear=True, symlinks=sys.platform != "win32")
    python = str(place / ("Scripts" if sys.platform == "win32" else "bin") / "python")
    _call(python, "-m", "pip", "install", "--quiet", *asked, "--editable", ".[dev]")
    packages = json.loads(_call(python, "-m", "pip", "list", "--format=json"))
    report, began = folder / f"{name}.xml", time.monotonic()
    how = ("-p", "no:cacheprovider", "--continue-on-collection-errors", f"--junit-xml={report}")
    tests = [python, "-m", "pytest", *how, *compatibility.tests]
    code = subprocess.run(tests, cwd=ROOT, check=False).returncode
    if code not in (0, _TESTS_FAILED):
        raise subprocess.CalledProcessError(code, tests)
    outcome = Outcome(
        asked=asked,
        date=datetime.date.today().isoformat(),
        commit=commit,
        python=_call(python, "-c", "import platform; print(platform.python_version())").strip(),
        packages={each["name"]: each["version"] for each in packages},
        minutes=round((time.monotonic() - began) / 60, 1),
        rows=read_rows(report, compatibility),
    )
    if not keep:
        shutil.rmtree(place)
    return outcome


def _call(*command: str) -> str:
    return subprocess.run(command, cwd=ROOT, check=True, stdout=subprocess.PIPE, text=True).stdout
