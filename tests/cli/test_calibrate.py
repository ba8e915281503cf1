"""`sdtm-fx calibrate`."""

from __future__ import annotations

from pathlib import Path

import pytest
from typer.testing import CliRunner

from sdtm_fx.cli.main import app
from sdtm_fx.cost.profile_cache import VARIABLE, load_profiles


def test_it_measures_keeps_and_says_where(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(VARIABLE, str(tmp_path))
    monkeypatch.setattr("sdtm_fx.cost.calibrate._WIDTH", 64)
    result = CliRunner().invoke(app, ["calibrate", "--seconds", "0.1"])
    assert result.exit_code == 0, result.output
    (profile,) = load_profiles().values()
    assert "GMAC/s" in result.stdout
    assert f"kept in {tmp_path}" in result.stdout
    assert profile.key.says() in result.stdout


def test_what_it_cannot_measure_it_says() -> None:
    result = CliRunner().invoke(app, ["calibrate", "--dtype", "int4"])
    assert result.exit_code == 1
    assert "CalibrationError: calibrate: found dtype 'int4'; accepted: float32, " in result.stderr
