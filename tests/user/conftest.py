"""Fixtures of the user-level tests."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
import torch

from sdtm_fx.cost import model as cost_model
from sdtm_fx.cost.trial import Trial
from tests.user.cases import CASES, Case


@pytest.fixture(params=CASES, ids=lambda case: case.name)
def case(request: pytest.FixtureRequest) -> Case:
    """Every kind of model in turn."""
    return request.param


@pytest.fixture(autouse=True, scope="package")
def _one_thread() -> Iterator[None]:
    """Tiny tensors on many threads only wait for each other."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture(autouse=True)
def _no_gradients() -> Iterator[None]:
    with torch.no_grad():
        yield


@pytest.fixture(autouse=True, scope="package")
def _measured_once() -> Iterator[None]:
    """Measure the cost of equal blocks once for all tests: they rewrite the same few models over and over."""
    measure, known = cost_model.measure_block, {}

    def recall(trial: Trial, text: int) -> Any:
        what = (trial.recipe.fingerprint(), trial.stage, str(trial.program.code), repr(trial.block))
        key = (*what, str(trial.leaves), trial.grid, trial.left_out, trial.with_extra, text)
        if key not in known:
            known[key] = measure(trial, text)
        return known[key]

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(cost_model, "measure_block", recall)
        yield
