"""Example calls of models that take classes, square images alone, or text of one length."""

from __future__ import annotations

import pytest
import torch
from torch import nn

import sdtm_fx
from sdtm_fx.capture.example import ExampleSize, example_call, example_size, takes_text
from sdtm_fx.errors import RecipeError
from sdtm_fx.recipe import load_recipe


def test_a_mask_that_is_read_holds_whole_numbers() -> None:
    recipe, model = (
        load_recipe("lumina-2").override({"inputs.encoder_hidden_states": ["batch", "text", 8]}),
        nn.Linear(1, 1),
    )
    call = example_call(
        model, recipe.override({"inputs.hidden_states": ["batch", 4, "height", "width"]}), ExampleSize(2, 3)
    )
    assert torch.equal(call["encoder_attention_mask"], torch.ones(2, 3, dtype=torch.int64))


def test_labels_are_whole_numbers() -> None:
    recipe, model = load_recipe("dit-xl-2"), nn.Linear(1, 1)
    inputs = {"inputs.hidden_states": ["batch", 4, "height", "width"]}
    call = example_call(model, recipe.override(inputs), ExampleSize(batch=3, grid=(4, 4)))
    assert torch.equal(call["class_labels"], torch.zeros(3, dtype=torch.int64))
    assert call["hidden_states"].shape == (3, 4, 8, 8)


def test_the_example_is_square_where_the_model_takes_nothing_else() -> None:
    square = load_recipe("dit-xl-2")
    height, width = example_size(square).grid
    assert height == width
    height, width = example_size(square.override({"tokens.grid.square": False})).grid
    assert height != width


def test_saying_that_any_image_is_taken_changes_no_fingerprint() -> None:
    recipe = load_recipe("sd3-medium-windows")
    assert recipe.override({"tokens.grid.square": False}).fingerprint() == recipe.fingerprint()
    assert recipe.override({"tokens.grid.square": True}).fingerprint() != recipe.fingerprint()


def test_an_unknown_fill_is_an_error() -> None:
    with pytest.raises(RecipeError, match=r"inputs\.class_labels\.fill: found 'label'; accepted .*'labels'"):
        load_recipe("dit-xl-2").override({"inputs.class_labels.fill": "label"})


def test_text_that_is_padded_to_one_length_is_no_size() -> None:
    assert [takes_text(load_recipe(name)) for name in ("sana", "dit-xl-2", "hunyuan-dit")] == [
        True,
        False,
        False,
    ]
    assert sdtm_fx.load_recipe("hunyuan-dit").inputs["encoder_hidden_states"].shape[1] == "text_len"
