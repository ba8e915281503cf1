"""What the tests of the tuner share: the budget of the SD3 toy at a small size."""

from __future__ import annotations

import pytest

from sdtm_fx.evaluate.models import ModelSource
from sdtm_fx.evaluate.schedule_costs import probe_size
from sdtm_fx.recipe import Recipe, load_recipe
from sdtm_fx.tuning.pricing import Pricing

STEPS = 8


def one_stage() -> Recipe:
    """One stage keeps the number of rewrites down."""
    stage = {"name": "all", "until": 1.0, "sites": ["attn", "ff"], "method": {"name": "tome"}}
    return load_recipe("toy-sd3-merge").override(stages=[stage])


@pytest.fixture(scope="module")
def pricing() -> Pricing:
    pipeline, base = ModelSource("toy-sd3").load(), one_stage()
    size = probe_size(pipeline, base, steps=STEPS, height=32, width=32)
    return Pricing((base,), pipeline, size, 1.5, "tuned")
