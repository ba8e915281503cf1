"""Costs of blocks, measured once for many tests."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest

from sdtm_fx.cost import model as cost_model
from sdtm_fx.cost.trial import Trial


@contextmanager
def costs_measured_once() -> Iterator[None]:
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
