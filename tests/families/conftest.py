"""Fixtures of the matrix of families."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from sdtm_fx.evaluate.drawing import threads
from tests.compat.classes import about
from tests.families.cases import FAMILIES, FamilyCase
from tests.measured import costs_measured_once


@pytest.fixture(
    params=[
        pytest.param(case, marks=pytest.mark.slow if case.is_variant else (), id=case.name)
        for case in FAMILIES
    ]
)
def case(request: pytest.FixtureRequest) -> FamilyCase:
    """Every family in turn."""
    about(request, request.param.recipe_name)
    return request.param


@pytest.fixture(autouse=True, scope="package")
def _one_thread() -> Iterator[None]:
    """Tiny tensors on many threads only wait for each other."""
    with threads(1):
        yield


@pytest.fixture(autouse=True, scope="package")
def _measured_once() -> Iterator[None]:
    with costs_measured_once():
        yield
