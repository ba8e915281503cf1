"""Images of the default recipes must not get worse.

`tests/data/quality_gate.json` is what `sdtm-fx eval` found, settings included; the same is measured again here.
After a change that is meant to move the numbers, or with new weights, write it anew from the root of the checkout:

    sdtm-fx eval --model toy-sd3 --recipe toy-sd3 --recipe toy-sd3-windows --recipe toy-sd3-merge --images 8 \
        --judge-images 0 --steps 20 --height 48 --width 48 --fresh --json tests/data/quality_gate.json
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from sdtm_fx.evaluate import Row, evaluate
from sdtm_fx.evaluate.identity import pipeline_digest
from sdtm_fx.evaluate.models import ModelSource
from sdtm_fx.recipe import load_recipe

GATES = sorted((Path(__file__).parents[1] / "data").glob("quality_gate*.json"))
ALLOWED = 0.5  # dB


def test_there_is_a_gate() -> None:
    assert GATES


@pytest.mark.slow
@pytest.mark.parametrize("path", GATES, ids=lambda path: path.stem)
def test_psnr_has_not_fallen(path: Path) -> None:
    known: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    settings = known["settings"]
    pipeline = ModelSource(settings["model"]).load()
    again = f"write {path.name} anew, as {Path(__file__).name} says"
    assert pipeline_digest(pipeline) == known["identity"]["pipeline"], f"the model is another one; {again}"
    before = {row["label"]: row["psnr"]["mean"] for row in known["rows"] if row["recipe"] is not None}
    recipes = [load_recipe(name).override({"sites.*.expect": None}) for name in settings["recipes"]]
    found = evaluate(
        pipeline,
        [Row(recipe.name, recipe.name, recipe) for recipe in recipes],
        **{name: settings[name] for name in ("prompts", "seeds", "steps", "height", "width", "batch")},
        guidance_scale=settings["guidance_scale"],
    )
    assert set(before) == {recipe.name for recipe in recipes}
    for label, psnr in before.items():
        now = found.estimate(label, "psnr").mean
        assert now >= psnr - ALLOWED, (
            f"{label}: {now:.2f} dB, it was {psnr:.2f} dB; if that is meant, {again}"
        )
