"""Where the repository is, and what of it a wheel must hold."""

from __future__ import annotations

import shutil
from pathlib import Path

ROOT = Path(__file__).parents[2]

# What `sdtm_fx` is made of: folder in the checkout, folder in the wheel.
FOLDERS = {"sdtm_fx": "sdtm_fx", "passes": "sdtm_fx/passes", "recipes": "sdtm_fx/recipes"}
SUFFIXES = {".py", ".yaml", ".typed", ".json", ".safetensors", ".md", ".j2", ".css", ".js"}


def shipped_files() -> set[str]:
    """Paths that a wheel must hold, from the files of the checkout."""
    found = set()
    for folder, inside in FOLDERS.items():
        for path in (ROOT / folder).rglob("*"):
            if path.is_file() and path.suffix in SUFFIXES | {""} and "__pycache__" not in path.parts:
                found.add(f"{inside}/{path.relative_to(ROOT / folder).as_posix()}")
    return found


def copy_sources(target: Path) -> Path:
    """Copy what a build reads, so that builds leave nothing in the checkout."""
    for folder in FOLDERS:
        shutil.copytree(ROOT / folder, target / folder, ignore=shutil.ignore_patterns("__pycache__"))
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy2(ROOT / name, target / name)
    return target
