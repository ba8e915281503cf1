"""Fixtures of the user-level tests."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from sdtm_fx.cost.profile import DeviceProfile
from sdtm_fx.cost.profile_cache import VARIABLE, save_profile
from sdtm_fx.evaluate.drawing import threads
from tests.compat.classes import about
from tests.measured import costs_measured_once
from tests.user.cases import CASES, Case

Measured = Callable[[DeviceProfile], None]


@pytest.fixture(params=CASES, ids=lambda case: case.name)
def case(request: pytest.FixtureRequest) -> Case:
    """Every kind of model in turn."""
    about(request, request.param.recipe_name)
    return request.param


@pytest.fixture(autouse=True, scope="package")
def _one_thread() -> Iterator[None]:
    """Tiny tensors on many threads only wait for each other."""
    with threads(1):
        yield


@pytest.fixture
def measured(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Measured:
    """Makes a device the one that was measured, with the threads that tests run on."""
    monkeypatch.setenv(VARIABLE, str(tmp_path))

    def measure(profile: DeviceProfile) -> None:
        save_profile(replace(profile, key=replace(profile.key, threads=torch.get_num_threads())))

    return measure


@pytest.fixture(autouse=True)
def _no_gradients() -> Iterator[None]:
    with torch.no_grad():
        yield


@pytest.fixture(autouse=True, scope="package")
def _measured_once() -> Iterator[None]:
    with costs_measured_once():
        yield
