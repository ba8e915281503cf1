"""`sdtm_fx.compile`: one graph per phase, and none after the first generation."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch

import sdtm_fx
from sdtm_fx.errors import RewriteError
from sdtm_fx.toy import load_toy
from tests.compiling.counting import FEW, Graphs, features_of, graph_breaks, no_new_graph, phases_of
from tests.user.cases import (
    FLUX_ATTENTION,
    FLUX_DEV,
    SD3,
    SD35_LARGE,
    SD35_MEDIUM,
    Case,
    all_equal,
    module_state,
    moving,
    run_plain,
    run_steps,
    the_rewriting,
)

pytestmark = pytest.mark.compile

STEPS = 50
# By block structure; FLUX single blocks get whole tensors first and slices of them after that.
REGIONS = {"sd3-medium": 2, "sd3.5-medium": 3, "sd3.5-large": 2, "flux.1-dev": 3}
WAYS = pytest.mark.parametrize("regional", [False, True], ids=["whole", "regional"])


@pytest.mark.slow
@WAYS
@pytest.mark.parametrize("case", [SD3, SD35_MEDIUM, SD35_LARGE, FLUX_DEV], ids=lambda case: case.name)
def test_there_are_as_many_graphs_as_phases(case: Case, regional: bool) -> None:
    model, inputs = case.model(), case.inputs()
    before, plain = module_state(model), run_plain(model, inputs, 2)
    sdtm_fx.rewrite(model, case.recipe(FEW))
    eager = run_steps(model, inputs, STEPS)
    sdtm_fx.compile(model, regional=regional, backend="eager")
    graphs = Graphs()
    compiled = run_steps(model, inputs, STEPS)
    assert graphs.made == phases_of(model, STEPS) * (REGIONS[case.name] if regional else 1)
    assert not graph_breaks()
    assert all_equal(compiled, eager)
    buffers = [f.data_ptr() for f in features_of(model)]
    with no_new_graph():
        assert all_equal(run_steps(model, inputs, STEPS), compiled)
    assert [f.data_ptr() for f in features_of(model)] == buffers
    other, graphs = case.inputs(grid=(6, 10)), Graphs()
    with torch._dynamo.config.patch(error_on_recompile=True):
        run_steps(model, other, STEPS)
    assert graphs.made <= phases_of(model, STEPS, (6, 10)) * (REGIONS[case.name] if regional else 1)
    sdtm_fx.restore(model)
    assert module_state(model) == before
    assert all_equal(run_plain(model, inputs, 2), plain)


MORE: dict[str, dict[str, Any]] = {
    "plans shared by blocks": {"plan.every_layers": 2},
    "plans kept": {"plan.every_steps": 2, "keep_dense.every_steps": None, "reuse.order": 0},
    "released ages": {"plan.ages": "call"},
    "forecast": {"stages.detail.method": {"name": "skip"}},
    "random targets": {"stages.structure.method": {"name": "local_match", "target": "random"}},
    "attention read": {"stages.detail.method": {"name": "idm"}},
    "prompt weight": {"prompt": {"start": 2.0, "end": 1.0}},
    "threshold": {"stages.structure.ratio": {"threshold": 0.2, "start": 0.5}},
    "blocks kept": {"keep_dense.layers": [-1]},
    "no features": {"reuse": None},
    "rates per layer": {"layers": [{"match": "**.0", "scale": 0.5, "reduce": "mlerp"}]},
    "rates per layer, plans kept": {
        "layers": [{"match": "**.0", "scale": 0.5}, {"match": "**.1", "reduce": "prune"}],
        "plan.every_steps": 2,
        "keep_dense.every_steps": None,
        "reuse.order": 0,
    },
    "tofu": {"stages.structure.method": {"name": "tofu"}},
    "pairs pruned": {"stages.structure.method": {"name": "sito"}},
    "cosine threshold": {
        "stages.structure.method": {"name": "ca_tome"},
        "stages.structure.ratio": {"threshold": 0.2, "start": 0.5},
    },
    "tokens cached": {
        "stages": [
            {
                "name": "all",
                "until": 1.0,
                "sites": ["ff"],
                "method": {"name": "token_cache", "probe_queries": 16},
            }
        ],
        "reuse": {"order": 1, "weight": 0.0, "update": "tokens"},
    },
    "fewer keys": {
        "sites.attn.merge": "keys",
        "stages.structure.method": {"name": "todo"},
        "plan.proportional": True,
        "prompt": {"start": 2.0},
    },
}


@WAYS
@pytest.mark.parametrize("name", MORE)
def test_what_a_recipe_may_ask_for_is_compiled(name: str, regional: bool) -> None:
    model, inputs = SD3.model(), SD3.inputs()
    sdtm_fx.rewrite(model, SD3.recipe({**FEW, **MORE[name]}))
    eager = run_steps(model, inputs)
    sdtm_fx.compile(model, regional=regional, backend="eager")
    assert all_equal(run_steps(model, inputs), eager)
    assert not graph_breaks()
    with no_new_graph():
        assert all_equal(run_steps(model, inputs), eager)


@WAYS
def test_merged_attention_with_rotary_tables_is_compiled(regional: bool) -> None:
    model, inputs = FLUX_ATTENTION.model(), FLUX_ATTENTION.inputs()
    sdtm_fx.rewrite(model, FLUX_ATTENTION.recipe(FEW))
    eager = run_steps(model, inputs)
    sdtm_fx.compile(model, regional=regional, backend="eager")
    assert all_equal(run_steps(model, inputs), eager)


def test_separate_guidance_calls_share_graphs() -> None:
    model, inputs = SD3.model(), SD3.inputs(batch=1)

    def run() -> list[torch.Tensor]:
        outputs = []
        with sdtm_fx.steps(model, 6) as clock:
            for _ in range(6):
                outputs += [model(**inputs)[0], model(**inputs)[0]]
                clock.advance()
        return outputs

    sdtm_fx.rewrite(model, SD3.recipe(FEW))
    eager = run()
    sdtm_fx.compile(model, backend="eager")
    graphs = Graphs()
    assert all_equal(run(), eager)
    assert graphs.made == phases_of(model, 6)


def test_warming_up_compiles_every_phase() -> None:
    model, inputs = SD3.model(), SD3.inputs()
    sdtm_fx.rewrite(model, SD3.recipe({**FEW, "plan.share": []}))
    eager = run_steps(model, inputs)
    graphs = Graphs()
    size = sdtm_fx.Size(grid=(8, 8), batch=2, text=5, steps=8)
    sdtm_fx.compile(model, backend="eager", warmup=size)
    assert graphs.made == phases_of(model, 8)
    with no_new_graph():
        assert all_equal(run_steps(model, inputs), eager)


@WAYS
def test_a_block_that_changes_is_compiled_again(regional: bool) -> None:
    model, inputs = SD3.model(), SD3.inputs()
    sdtm_fx.rewrite(model, SD3.recipe(FEW))
    sdtm_fx.compile(model, regional=regional, backend="eager")
    run_steps(model, inputs, 4)
    block = model.transformer_blocks[0]
    block.ff.net[2] = torch.nn.Sequential(block.ff.net[2], torch.nn.Tanh())
    compiled = run_steps(model, inputs, 4)
    sdtm_fx.rewrite(model, SD3.recipe(FEW))  # takes the compilation back
    assert all_equal(run_steps(model, inputs, 4), compiled)


# -- the usual ways to compile a model -----------------------------------------------------------------


@pytest.mark.parametrize("way", ["compile", "compile_repeated_blocks"])
def test_the_models_own_ways_to_compile_are_ours(way: str) -> None:
    model, inputs = SD3.model(), SD3.inputs()
    sdtm_fx.rewrite(model, SD3.recipe(FEW))
    eager = run_steps(model, inputs)
    getattr(model, way)(backend="eager", fullgraph=True)
    graphs = Graphs()
    assert all_equal(run_steps(model, inputs), eager)
    assert graphs.made == phases_of(model, 8) * (SD3.structures if "blocks" in way else 1)
    sdtm_fx.restore(model)
    assert way not in vars(model)
    assert all_equal(run_plain(model, inputs, 2), run_plain(SD3.model(), inputs, 2))


def test_torch_compile_compiles_the_phases_too() -> None:
    model, inputs = SD3.model(), SD3.inputs()
    sdtm_fx.rewrite(model, SD3.recipe(FEW))
    eager = run_steps(model, inputs)
    compiled, outputs, graphs = torch.compile(model, backend="eager", fullgraph=True), [], Graphs()
    with sdtm_fx.steps(model, 8) as clock:
        for step in range(8):
            outputs.append(compiled(**moving(inputs, step, 8))[0])
            clock.advance()
    assert all_equal(outputs, eager)
    # The first dense step makes the tensors that later ones write to: that is a graph of its own.
    assert graphs.made == phases_of(model, 8) + 1


# -- bad input -------------------------------------------------------------------------------------------


def test_compiling_before_rewriting_is_an_error() -> None:
    with pytest.raises(RewriteError, match=r"SD3Transformer2DModel is not rewritten; call sdtm_fx\.rewrite"):
        sdtm_fx.compile(SD3.model())


def test_a_copy_is_not_compiled() -> None:
    model, inputs = SD3.model(), SD3.inputs()
    sdtm_fx.rewrite(model, SD3.recipe(FEW))
    sdtm_fx.compile(model, backend="eager")
    twin = copy.deepcopy(model)
    graphs = Graphs()
    expected = run_steps(twin, inputs, 4)
    assert graphs.made == 0
    assert the_rewriting(twin).executor is None
    assert all_equal(run_steps(model, inputs, 4), expected)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["sd3", "flux"])
def test_the_toys_draw_the_same_images_with_a_graph_per_phase(name: str) -> None:
    pipe = sdtm_fx.rewrite(load_toy(name), f"toy-{name}")
    options = {"num_inference_steps": STEPS, "height": 16, "width": 16, "output_type": "latent"}

    def image(**size: int) -> torch.Tensor:
        generator = torch.Generator().manual_seed(0)
        return pipe("a large plain red circle", generator=generator, **{**options, **size}).images

    eager, eager_wide = image(), image(width=24)
    sdtm_fx.compile(pipe, backend="eager")
    graphs = Graphs()
    assert torch.equal(image(), eager)
    assert graphs.made == phases_of(pipe.transformer, STEPS, grid=(8, 8), text=16)
    assert not graph_breaks()
    with no_new_graph():
        assert torch.equal(image(), eager)
    graphs = Graphs()
    assert torch.equal(image(width=24), eager_wide)
    assert graphs.made <= phases_of(pipe.transformer, STEPS, grid=(8, 12), text=16)
