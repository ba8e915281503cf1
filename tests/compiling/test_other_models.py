"""Models without a shipped recipe, among them those whose blocks diffusers itself does not compile one by one."""

from __future__ import annotations

from typing import Any

import pytest
from torch import nn

import sdtm_fx
from tests.compiling.counting import Graphs, graph_breaks, no_new_graph, phases_of
from tests.pipelines import randomize
from tests.user.cases import all_equal, run_steps, the_rewriting
from tests.zoo import ZOO, build, pixart

pytestmark = pytest.mark.compile

STEPS = 8


def recipe(model: type[nn.Module], attention: dict[str, Any], feed_forward: str) -> dict[str, Any]:
    """Attention and feed-forward in the first half of the steps, feed-forward alone in the other."""
    return {
        "version": 1,
        "name": model.__name__,
        "description": "A model without a shipped recipe.",
        "model": [model.__name__],
        "tokens": {"grid": {"latent": "hidden_states", "patch": 2}},
        "sites": [
            {"id": "attn", "kind": "attention", "input": "hidden_states", **attention},
            {"id": "ff", "kind": "feed_forward", "match": feed_forward, "input": 0},
        ],
        "stages": [
            {"name": "structure", "until": 0.5, "sites": ["attn", "ff"], "method": {"name": "ssm"}},
            {"name": "detail", "until": 1.0, "sites": ["ff"], "method": {"name": "local_match"}},
        ],
        "ratio": {"curve": "constant", "start": 0.5},
        "keep_dense": {"first_steps": 2, "last_steps": 1, "every_steps": 3},
        "reuse": {"order": 1, "weight": 0.1},
        "plan": {"share": [], "round_to": 1},
    }


def compiled_as_eager(model: nn.Module, rules: dict[str, Any], inputs: dict[str, Any]) -> int:
    """Compare compiled with eager generations; returns how many graphs the first one made."""
    sdtm_fx.rewrite(model, rules, example=inputs)
    eager = run_steps(model, inputs, STEPS)
    sdtm_fx.compile(model, regional=True, backend="eager")
    graphs = Graphs()
    assert all_equal(run_steps(model, inputs, STEPS), eager)
    made = graphs.made
    assert not graph_breaks()
    with no_new_graph():
        assert all_equal(run_steps(model, inputs, STEPS), eager)
    return made


@pytest.mark.slow
@pytest.mark.parametrize("layers", [2, 4])
def test_pixart_is_compiled_block_by_block(layers: int) -> None:
    model = randomize(pixart(layers))
    assert not model._repeated_blocks  # what diffusers would compile
    rules = recipe(type(model), {"match": "transformer_blocks.*.attn1"}, "transformer_blocks.*.ff")
    made = compiled_as_eager(model, rules, ZOO["pixart"].inputs(2, (8, 8), 5))
    # The first block gets a transposed view from the patch embedding, all others whole tensors.
    assert made == 2 * phases_of(model, STEPS)


@pytest.mark.slow
def test_blocks_without_sites_are_compiled_too() -> None:
    model = build("auraflow")
    joint = "joint_transformer_blocks.*"
    rules = recipe(type(model), {"match": f"{joint}.attn", "output": 0}, f"{joint}.ff")
    compiled_as_eager(model, rules, ZOO["auraflow"].inputs(2, (8, 8), 5))
    assert [*the_rewriting(model).others] == ["single_transformer_blocks.0", "single_transformer_blocks.1"]


def test_every_model_of_the_zoo_has_its_blocks_in_lists() -> None:
    """What `sdtm_fx.compile` takes for granted of blocks that are not rewritten."""
    for name, family in ZOO.items():
        model = build(name)
        for path in family.blocks:
            assert isinstance(model.get_submodule(path), nn.ModuleList), name
            assert model.get_submodule(path) in [*model.children()], name
