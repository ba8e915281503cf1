"""The recipes that follow publications: all there, on the page, and what they merge is what they say."""

from __future__ import annotations

import functools
from typing import Any

import pytest
import torch
from torch import nn

import sdtm_fx
from sdtm_fx.explaining.published import ROWS
from sdtm_fx.explaining.shapes import PUBLISHED, TOYS, shape_of
from sdtm_fx.methods import METHODS
from sdtm_fx.recipe import list_recipes, load_recipe
from sdtm_fx.recipe.ratio import FullRatio, ThresholdRatio
from sdtm_fx.step_counts import dense_steps
from tests.pipelines import randomize, tiny_flux_transformer, tiny_sd3_transformer
from tests.unets import sdxl_inputs, tiny_sdxl
from tests.user.cases import FLUX_DEV, SD3, all_equal, moving, run_plain, the_rewriting

BASELINES = [name for name in list_recipes() if name.startswith("baselines/")]
FORMS = {"toma-tile": "toma", "toma-once": "toma", "fora": "skip", "taylorseer": "skip"}
"""Names that are not those of a method."""

FAST = {
    "tome-toy-sd3", "at-edm-toy-sd3", "todo-toy-sd3", "taylorseer-toy-sd3", "importance-toy-sd3", "toma-toy-flux",
}  # fmt: skip
"""One of every kind. The others differ in method or model, which have tests of their own, and are slow together."""

SMALL = {"sites.*.expect": None, "plan.round_to": 1}


def method_of(name: str) -> str:
    """The part of a name in front of the model."""
    return name.removeprefix("baselines/").removesuffix(f"-{shape_of(name)}")


def runnable() -> list[Any]:
    """Recipes that fit a small model as they are, or nearly so."""
    chosen = [name for name in BASELINES if shape_of(name) in (*TOYS, "sdxl")]
    return [
        pytest.param(name, marks=[] if name.removeprefix("baselines/") in FAST else [pytest.mark.slow])
        for name in chosen
    ]


def zeroed() -> list[Any]:
    """Recipes for toys whose every stage merges."""
    chosen = [name for name in BASELINES if shape_of(name) in TOYS]
    merging = [name for name in chosen if all(stage.method.merges for stage in load_recipe(name).stages)]
    fast = "baselines/toma-toy-flux"
    return [pytest.param(name, marks=[] if name == fast else [pytest.mark.slow]) for name in merging]


# -- what there is -------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", BASELINES)
def test_the_name_is_a_method_and_a_model(name: str) -> None:
    method, recipe = method_of(name), load_recipe(name)
    assert name == f"baselines/{method}-{shape_of(name)}"
    if method == "sdtm":
        assert shape_of(name) in TOYS, "for published models it lies under paper/"
        return
    merged = FORMS.get(method, method.replace("-", "_"))
    assert merged in METHODS
    assert recipe.stages[0].method.name == merged
    assert len(recipe.description) > 20


def test_every_method_has_a_recipe_for_every_model_or_a_reason() -> None:
    models = {
        method: {shape_of(n) for n in BASELINES if method_of(n) == method}
        for method in map(method_of, BASELINES)
    }
    everywhere = {"sd3-medium", "flux.1-dev", "sdxl", *TOYS}
    assert {method: everywhere - there for method, there in models.items() if everywhere - there} == {
        "importance": {"flux.1-dev", "toy-flux"},
        "toma-tile": {"flux.1-dev", *TOYS},
        "toma-once": {"flux.1-dev", *TOYS},
        "token-cache": {"sdxl"},
        "fora": {"sdxl"},
        "taylorseer": {"sdxl"},
        "sdtm": {"sd3-medium", "flux.1-dev", "sdxl"},
    }  # fmt: skip


def test_every_recipe_after_a_publication_has_a_row_on_the_page() -> None:
    rows = [row.recipe for row in ROWS]
    wanted = {name for name in list_recipes() if "/" in name and shape_of(name) not in TOYS}
    assert len(set(rows)) == len(rows)
    assert set(rows) == wanted | {"paper/sd3-medium-released"}
    assert {shape_of(row) for row in rows} <= set(PUBLISHED)


# -- what they do --------------------------------------------------------------------------------------


@functools.cache
def small(shape: str) -> tuple[nn.Module, Any]:
    """A random model of a family, as deep as the toys are, and the inputs of a call."""
    if shape == "sdxl":
        return tiny_sdxl(layers=2), sdxl_inputs()
    if shape == "toy-sd3":
        return randomize(tiny_sd3_transformer(layers=6), seed=3, scale=0.15), SD3.inputs()
    return randomize(tiny_flux_transformer(layers=2, single_layers=4), seed=3, scale=0.15), FLUX_DEV.inputs()


def fitted(name: str, **changes: Any) -> sdtm_fx.Recipe:
    """The recipe as it is, but for numbers of blocks."""
    recipe = load_recipe(name)
    if name == "baselines/at-edm-sdxl":  # two blocks in every transformer, one transformer less of each kind
        places = {
            "edges": r"(up_blocks\.[01]\.attentions\.1)",
            "middle": r"(.*_blocks\.[12]\.attentions\.0|mid.*)",
        }
        for span, where in places.items():
            ends = {
                "first": f"re:{where}\\.transformer_blocks\\.0",
                "last": f"re:{where}\\.transformer_blocks\\.1",
            }
            recipe = recipe.override({f"spans.{span}": ends})
    if name in ("baselines/toma-sdxl", "baselines/toma-tile-sdxl", "baselines/toma-once-sdxl"):
        changes = {"plan.every_layers": 2, **changes}  # 2 of 14 blocks come before the first level ends
    return recipe.override({**SMALL, **changes})


def outputs(name: str, recipe: sdtm_fx.Recipe, steps: int) -> list[torch.Tensor]:
    """What a rewritten small model returns over a generation; it is dense again afterwards."""
    model, inputs = small(shape_of(name))
    halves = 2 if recipe.reads_halves else None
    found = []
    with (
        sdtm_fx.rewritten(model, recipe),
        torch.no_grad(),
        sdtm_fx.steps(model, steps, cfg_halves=halves) as clock,
    ):
        for step in range(steps):
            found.append(model(**later(name, inputs, step, steps))[0])
            check_counts(name, recipe, model, step)
            clock.advance()
    return found


def later(name: str, inputs: Any, step: int, steps: int) -> dict[str, Any]:
    if shape_of(name) != "sdxl":
        return moving(inputs, step, steps)
    return {**inputs, "sample": inputs["sample"] * (1 - 0.5 * step / steps)}


def check_counts(name: str, recipe: sdtm_fx.Recipe, model: nn.Module, step: int) -> None:
    """The phase of the step removes what the recipe says."""
    runtime = the_rewriting(model).runtime
    size = runtime.last
    assert size is not None
    schedule = runtime.schedule(size.steps, size.grid, size.text, size.batch)
    phase = schedule.phase(step)
    if phase.stage is None:
        return
    stage, tokens = recipe.stages[phase.stage], size.grid[0] * size.grid[1]
    ratio = stage.ratio or recipe.ratio
    if not stage.method.merges:
        assert phase.remove == tokens
    elif isinstance(ratio, FullRatio):
        assert phase.remove == stage.method.capacity(size.grid) > 0
    elif not isinstance(ratio, ThresholdRatio):
        most = max(
            abs(ratio.start - ratio.end) / (2 * ratio.levels), 0.03
        )  # a level stands for its neighbourhood
        assert phase.remove / tokens == pytest.approx(schedule.ratios[step], abs=most)


@pytest.mark.parametrize("name", runnable())
def test_it_merges_what_it_says(name: str) -> None:
    recipe, steps = fitted(name), 8
    found = outputs(name, recipe, steps)
    assert all(bool(output.isfinite().all()) for output in found)
    if shape_of(name) == "sdxl":
        return
    model, inputs = small(shape_of(name))
    dense = run_plain(model, inputs, steps)
    changed = [not torch.equal(a, b) for a, b in zip(found, dense, strict=True)]
    # Under a threshold the first step counts, and random tokens may all be too different to merge.
    assert any(changed) or isinstance(recipe.ratio, ThresholdRatio)
    if not recipe.keep_dense.first_steps:
        return
    if shape_of(name) == "toy-flux":  # a projection that stores what single blocks add is split
        torch.testing.assert_close(found[0], dense[0])
    else:
        assert not changed[0]


@pytest.mark.parametrize("name", zeroed())
def test_ratio_zero_is_the_original_bit_for_bit(name: str) -> None:
    recipe = fitted(name)
    zero: dict[str, Any] = {"ratio": {"curve": "constant", "start": 0.0}}
    stages = {stage.name: {"ratio": None} for stage in recipe.stages if stage.ratio is not None}
    model, inputs = small(shape_of(name))
    found = outputs(name, recipe.override(zero, stages=stages), 4)
    assert all_equal(found, run_plain(model, inputs, 4))


def test_published_numbers_are_those_of_the_sources() -> None:
    fora, taylor = load_recipe("baselines/fora-flux.1-dev"), load_recipe("baselines/taylorseer-flux.1-dev")
    assert fora.reuse is not None
    assert (fora.reuse.order, fora.keep_dense.every_steps) == (0, 3)
    assert sorted(dense_steps(fora, 50)) == list(range(0, 50, 3))
    assert len(dense_steps(taylor, 50)) == 10
    toma = load_recipe("baselines/toma-flux.1-dev")
    assert sorted(set(range(35)) - dense_steps(toma, 35)) == list(range(2, 35, 3))
    assert load_recipe("baselines/at-edm-sdxl").ratio.start == 0.63
