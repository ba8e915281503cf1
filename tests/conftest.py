"""Fixtures of all tests."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from sdtm_fx.cost.profile_cache import VARIABLE


@pytest.fixture(autouse=True, scope="session")
def _own_cache(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """What was measured on this machine must not decide what tests merge."""
    with pytest.MonkeyPatch.context() as patch:
        folder = tmp_path_factory.mktemp("cache")
        patch.setenv(VARIABLE, str(folder / "session"))
        yield folder


@pytest.fixture(autouse=True)
def _empty_cache(_own_cache: Path, request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Nor must what another test has measured."""
    monkeypatch.setenv(VARIABLE, str(_own_cache / f"test-{id(request.node)}"))
