"""Fixtures of the user-level tests."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch

from sdtm_fx.evaluate.drawing import threads
from tests.compat.classes import about
from tests.measured import costs_measured_once
from tests.user.cases import CASES, Case


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


@pytest.fixture(autouse=True)
def _no_gradients() -> Iterator[None]:
    with torch.no_grad():
        yield


@pytest.fixture(autouse=True, scope="package")
def _measured_once() -> Iterator[None]:
    with costs_measured_once():
        yield
