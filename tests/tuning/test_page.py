"""Searches as tables."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from sdtm_fx.cli.main import app
from sdtm_fx.errors import SdtmFxError
from sdtm_fx.tuning.page import holds_tuning, read_tuning, tuning_section

DATA: dict[str, Any] = {
    "goal": {
        "speedup": 1.5, "steps": 8, "height": 64, "width": 48, "quality": "psnr", "images": 4, "held_out": 2,
    },
    "environment": {
        "commit": "abc", "python": "3.11", "torch": "2.13.0", "diffusers": "0.42.1", "processor": "a processor",
    },
    "command": "sdtm-fx tune --speedup 1.5",
    "model": "toy-sd3",
    "written": "version: 1\nname: mine\n",
    "chosen_after": 300.0,
    "seconds": 600.0,
    "tried": 200,
    "tuned": {"label": "tuned", "family": "mixed", "speedup": 1.5, "held_out": [30.0, 32.0]},
    "rivals": [
        {"label": "worse", "family": "merging", "speedup": 1.51, "held_out": [20.0, 20.0]},
        {"label": "better", "family": "caching", "speedup": 1.6, "held_out": [29.0, 30.0]},
        {"label": "identical", "family": "caching", "speedup": 1.0, "held_out": [None, None]},
    ],
    "left_out": ["some: knob 'ratio': found a budget of 1.5x; accepted 1.00x to 1.13x"],
    "sensitivities": [{"part": "ff in stage all", "gain": 1.0, "share": 0.05, "rate": 0.2}],
}  # fmt: skip


def written(folder: Path, **changes: Any) -> Path:
    path = folder / "search.json"
    path.write_text(json.dumps({**DATA, **changes}), encoding="utf-8")
    return path


def test_a_section_ranks_rivals_and_shows_the_recipe(tmp_path: Path) -> None:
    path = written(tmp_path, rivals=DATA["rivals"][:2])
    assert holds_tuning(path)
    page = tuning_section(read_tuning(path))
    assert page.startswith("## toy-sd3, 8 steps, 1.5x\n")
    assert "commit abc, a processor" in page
    assert (
        "200 trials on 4 images; the best was chosen after 5 minutes, the comparison done after 10." in page
    )
    rows = [line for line in page.splitlines() if "x | " in line]
    assert [row.split(" | ")[0] for row in rows] == ["| tuned", "| better", "| worse"]
    assert rows[1].endswith("| 1.50 [1.00, 2.00] |"), "image by image"
    assert "| ff in stage all | +1.00 | 5.00% | +0.200 |" in page
    assert "Not compared: some: knob 'ratio'" in page
    assert "```yaml\nversion: 1\nname: mine\n```" in page


def test_a_search_without_sensitivities_has_no_table_of_them(tmp_path: Path) -> None:
    page = tuning_section(read_tuning(written(tmp_path, sensitivities=[], left_out=[])))
    assert "computing a part whole" not in page
    assert "Not compared" not in page
    assert "| identical | caching | 1.00x | inf" in page


def test_the_command_tells_searches_from_evaluations(tmp_path: Path) -> None:
    printed = CliRunner().invoke(app, ["tables", str(written(tmp_path))])
    assert printed.exit_code == 0, printed.output
    assert printed.stdout == tuning_section(read_tuning(tmp_path / "search.json"))


def test_what_is_no_search_is_an_error(tmp_path: Path) -> None:
    path = tmp_path / "other.json"
    assert not holds_tuning(path)
    path.write_text('{"rivals": []}', encoding="utf-8")
    with pytest.raises(SdtmFxError, match=r"goal: Field required; accepted: what `sdtm-fx tune --json`"):
        read_tuning(path)
