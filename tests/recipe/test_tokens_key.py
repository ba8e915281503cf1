"""Frames, protection, references and what stands around the image, as recipes write them."""

from __future__ import annotations

import re
from typing import Any

import pytest
import torch
from torch import nn

from sdtm_fx.capture.example import ExampleSize, example_call, example_size, text_length
from sdtm_fx.errors import RecipeError
from sdtm_fx.recipe import Recipe
from sdtm_fx.recipe.tokens import InputSpec, NumberInput

VIDEO = {"grid": {"latent": "x", "patch": [1, 2, 2]}}


def data(**changes: Any) -> dict[str, Any]:
    return {
        "version": 1,
        "name": "layout",
        "model": ["Model"],
        "tokens": VIDEO,
        "sites": [{"id": "ff", "kind": "feed_forward", "match": "ff"}],
        "stages": [{"name": "all", "until": 1.0, "sites": ["ff"], "method": {"name": "ssm"}}],
        "ratio": {"curve": "constant", "start": 0.5},
        **changes,
    }


def stage(**method: Any) -> list[dict[str, Any]]:
    return [{"name": "all", "until": 1.0, "sites": ["ff"], "method": method}]


def site(**more: Any) -> list[dict[str, Any]]:
    return [{"id": "ff", "kind": "feed_forward", "match": "ff", **more}]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            {"tokens": {"grid": {"latent": "x", "patch": 2, "axes": [1, 3, 4]}}},
            "tokens.grid.axes: found 3 axes for a patch of 2 sides; accepted 2 axes",
        ),
        (
            {"tokens": {"grid": {"latent": "x", "patch": 2, "axes": [3, 3]}}},
            "tokens.grid.axes: found [3, 3], which names an axis twice; accepted different axes",
        ),
        (
            {"tokens": {"grid": {"latent": "x", "patch": 2, "axes": [3]}}},
            "tokens.grid.axes: found a list of 1; accepted a list of 2 to 3 items",
        ),
        (
            {"tokens": {"grid": {"latent": "x", "patch": 2}, "protect": {"first_frames": 1}}},
            "tokens.protect.first_frames: found 1 with a grid of (height, width); accepted 0, or a grid with frames",
        ),
        ({"tokens": {**VIDEO, "protect": {"frames": 1}}}, "tokens.protect.frames: found an unknown key"),
        (
            {"tokens": {"grid": {"latent": "x", "patch": 2}}, "stages": stage(name="ssm", window=[2, 2, 2])},
            "stages[0].method.window: found 2x2x2 (frames, height, width) with a grid of (height, width); accepted two",
        ),
        (
            {"tokens": {"grid": {"latent": "x", "patch": 2}}, "stages": stage(name="toma", tile=[2, 2, 2])},
            "stages[0].method.tile: found 2x2x2 (frames, height, width) with a grid of (height, width); accepted two",
        ),
        (
            {"stages": stage(name="ssm", window=[2, 2, 2, 2])},
            "stages[0].method.window: found a list of 4; accepted a list of 2 to 3 items, each an integer from 1",
        ),
        (
            {"stages": stage(name="ssm", window=[1, 1, 1])},
            "found window (1, 1, 1); accepted (height, width), or (frames, height, width) on a grid with frames",
        ),
        (
            {"sites": site(prefix="*", suffix="*")},
            "sites[0].suffix: found '*' beside prefix '*'; accepted what is left of the sequence on one side",
        ),
        (
            {"tokens": {"grid": {"shapes": "img_shapes"}}, "sites": site(downsample=2)},
            "sites[0].downsample: found 2 beside reference tokens, which have a size of their own; accepted 1",
        ),
        (
            {"inputs": {"mask": {"shape": ["batch", "text"], "read": True}}},
            "inputs.mask.read: found true beside no fill; accepted fill: ones",
        ),
        (
            {"inputs": {"shapes": {"fill": "grid_shapes"}}},
            "inputs.shapes.fill: found 'grid_shapes' for an argument that the grid is not read from; accepted the",
        ),
        ({"inputs": {"x": {"number": 1.5}}}, "inputs.x.number: found 1.5"),
        (
            {"tokens": {"grid": {"arguments": ["h"]}}},
            "tokens.grid.arguments: found a list of 1; accepted a list of 2 to 3",
        ),
        (
            {"ratio": {"curve": "constant", "start": 0.8}},
            "ratio: found a ratio of up to 0.8; accepted at most 0.75",
        ),
    ],
)
def test_what_does_not_go_together(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(RecipeError, match=re.escape(message)):
        Recipe.from_mapping(data(**changes))


def test_text_scores_and_protected_tokens_do_not_mix() -> None:
    sites = [*site(), {"id": "attn", "kind": "attention", "match": "attn"}]
    tokens = {**VIDEO, "protect": {"first_frames": 1}}
    with pytest.raises(
        RecipeError, match="at_edm, which reads attention to text, beside image tokens that are never"
    ):
        Recipe.from_mapping(data(tokens=tokens, sites=sites, stages=stage(name="at_edm", rank="entropy")))
    Recipe.from_mapping(data(tokens=tokens, sites=sites, stages=stage(name="at_edm")))


def test_rotary_of_spans_has_its_text_in_front() -> None:
    spans = [{"id": "body", "first": 0, "last": 1, "rotary": "rotary"}]
    with pytest.raises(
        RecipeError, match=r"spans\[0\].rotary: found rotary tables of a span, whose text rows stand in"
    ):
        Recipe.from_mapping(data(sites=site(suffix="*"), spans=spans))


def test_windows_of_slots_have_two_sides() -> None:
    inside = {"sites": ["ff"], "method": {"name": "tome", "window": [1, 1, 2]}, "ratio": 0.2}
    spans = [{"id": "body", "first": 0, "last": 1}]
    stages = [{**stage(name="ssm")[0], "sites": ["body"], "inside": inside}]
    with pytest.raises(
        RecipeError, match="found a window of three sides inside of a span, where there is no grid"
    ):
        Recipe.from_mapping(data(spans=spans, stages=stages))


def test_a_window_with_frames_reaches_a_higher_ratio() -> None:
    recipe = Recipe.from_mapping(
        data(stages=stage(name="ssm", window=[2, 2, 2]), ratio={"curve": "constant", "start": 0.87})
    )
    assert recipe.stages[0].method.window == (2, 2, 2)
    assert Recipe.from_yaml_text(recipe.to_yaml()) == recipe


def test_defaults_keep_the_fingerprint_and_other_values_change_it() -> None:
    plain = Recipe.from_mapping(data(inputs={"x": ["batch", 4, 8, 8]}))
    said = plain.override(
        {
            "tokens.protect.first_frames": 0,
            "tokens.grid.axes": None,
            "sites.ff.suffix": None,
            "sites.ff.rotary_axis": 0,
            "inputs.x": {"shape": ["batch", 4, 8, 8], "copies": None},
        }
    )
    assert said.fingerprint() == plain.fingerprint()
    changes: list[dict[str, Any]] = [
        {"tokens.protect.first_frames": 1},
        {"tokens.grid.axes": [1, 3, 4]},
        {"sites.ff.suffix": "*"},
        {"sites.ff.rotary_axis": 1},
        {"inputs.x": {"shape": ["batch", 4, 8, 8], "copies": 2}},
    ]
    assert len({plain.fingerprint(), *(plain.override(c).fingerprint() for c in changes)}) == 6


class Model(nn.Module):
    """Its config names sizes."""

    def __init__(self, **config: int) -> None:
        super().__init__()
        self.config = {"channels": 3, **config}


INPUTS = {
    "x": {"shape": ["channels", "frames", "height", "width"], "copies": "batch"},
    "tables": {"shape": ["tokens", 6], "copies": 2},
    "captions": {"shape": ["text", 5], "copies": "batch"},
    "num_frames": "frames",
    "scale": 7,
    "bias": {"number": 2, "when": "has_bias"},
    "lengths": {"number": "text", "copies": "batch", "before": "999.0"},
    "sides": {"number": "height", "copies": 2},
    "gone": {"number": "text", "before": "0.10.2"},
    "gone_too": {"shape": ["text"], "before": "0.10"},
}


def test_lists_tuples_and_integers_of_an_example_call() -> None:
    recipe = Recipe.from_mapping(data(inputs=INPUTS, tokens={**VIDEO, "protect": {"first_frames": 1}}))
    assert isinstance(recipe.inputs["num_frames"], NumberInput)
    call = example_call(Model(), recipe, ExampleSize(2, 9, (3, 4, 5)))
    assert [t.shape for t in call["x"]] == [(3, 4, 8, 10)] * 2
    assert isinstance(call["x"], list)
    assert [t.shape for t in call["tables"]] == [(4 * 20, 6)] * 2
    assert isinstance(call["tables"], tuple)
    assert (call["num_frames"], call["scale"]) == (4, 7)
    assert "bias" not in call
    assert (call["lengths"], call["sides"]) == ([9, 9], (8, 8))
    assert not {"gone", "gone_too"} & set(call), "diffusers is younger"
    assert example_call(Model(has_bias=1), recipe, ExampleSize(grid=(3, 4, 5)))["bias"] == 2
    assert text_length(recipe, {"x": call["x"], "captions": call["captions"]}) == 9
    assert text_length(recipe, {"captions": [torch.zeros(4, 5), torch.zeros(6, 5)]}) == 6
    assert Recipe.from_yaml_text(recipe.to_yaml()) == recipe


def test_an_argument_of_older_versions_names_one() -> None:
    with pytest.raises(
        RecipeError, match=r"inputs\.gone\.before: found 0\.37; accepted a version in quotes, such as '0"
    ):
        Recipe.from_mapping(data(inputs={"gone": {"number": "text", "before": 0.37}}))
    plain = Recipe.from_mapping(data(inputs={"gone": {"number": "text"}}))
    silent = {"gone": {"number": "text", "before": None, "copies": None}}
    assert Recipe.from_mapping(data(inputs=silent)).fingerprint() == plain.fingerprint()
    assert plain.override({"inputs.gone.before": "0.37"}).fingerprint() != plain.fingerprint()


def test_shapes_and_ids_of_an_example_call_know_references() -> None:
    shapes = {"img_shapes": {"fill": "grid_shapes"}, "hidden_states": ["batch", "tokens", "channels"]}
    recipe = Recipe.from_mapping(data(tokens={"grid": {"shapes": "img_shapes"}}, inputs=shapes))
    call = example_call(Model(), recipe, ExampleSize(2, 9, (1, 4, 5), references=6))
    assert call["img_shapes"] == [[(1, 4, 5), (1, 2, 3)]] * 2
    assert call["hidden_states"].shape == (2, 26, 3)
    grid = {"ids": "ids", "columns": [1, 2], "reference_column": 0}
    inputs = {"ids": {"shape": ["batch", "tokens", 4], "fill": "grid_ids"}}
    recipe = Recipe.from_mapping(data(tokens={"grid": grid}, inputs=inputs))
    ids = example_call(Model(), recipe, ExampleSize(2, 9, (4, 5), references=6))["ids"]
    assert ids.shape == (2, 26, 4)
    assert ids[0, :20, 1].reshape(4, 5)[:, 0].tolist() == [0, 1, 2, 3]
    assert ids[0, 19:, 0].tolist() == [0, *[1] * 6]
    assert isinstance(recipe.inputs["ids"], InputSpec)


def test_the_example_has_room_for_windows_with_frames() -> None:
    recipe = Recipe.from_mapping(data(stages=stage(name="ssm", window=[4, 2, 2])))
    assert example_size(recipe).grid == (9, 8, 6)
    assert example_size(Recipe.from_mapping(data())).grid == (3, 8, 6)
