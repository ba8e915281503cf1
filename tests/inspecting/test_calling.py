"""Finding the arguments of a call without a recipe."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from diffusers import CogView4Transformer2DModel, QwenImageTransformer2DModel, WanTransformer3DModel
from torch import nn

from sdtm_fx.errors import InspectionError
from sdtm_fx.inspecting.arguments import Argument, CallSizes, make
from sdtm_fx.inspecting.building import build_on_meta, with_layers
from sdtm_fx.inspecting.calling import find_call
from sdtm_fx.inspecting.given import parse_inputs
from sdtm_fx.inspecting.opening import Subject, open_subject
from tests.families.cases import FAMILIES
from tests.inspecting.models import subject_of


def found(subject: Subject, *inputs: str) -> dict[str, str]:
    few = build_on_meta(subject, with_layers(subject.config, 2))
    call = find_call(few, subject.config, parse_inputs(inputs, subject.config))
    return {name: argument.says() for name, argument in call.arguments.items()}


def test_flux_is_given_tokens_and_their_ids() -> None:
    assert found(open_subject("flux.1-dev")) == {
        "hidden_states": "[batch, tokens, in_channels]",
        "encoder_hidden_states": "[batch, text, joint_attention_dim]",
        "pooled_projections": "[batch, pooled_projection_dim]",
        "timestep": "[batch]",
        "img_ids": "[tokens, 3] grid_ids",
        "txt_ids": "[text, 3] zeros",
        "guidance": "[batch] ones",
    }


def test_a_unet_is_given_a_latent_and_a_mapping() -> None:
    assert found(open_subject("sdxl")) == {
        "sample": "[batch, in_channels, height, width]",
        "timestep": "[batch]",
        "encoder_hidden_states": "[batch, text, cross_attention_dim]",
        "added_cond_kwargs.text_embeds": "[batch, 1280]",
        "added_cond_kwargs.time_ids": "[batch, 6]",
    }


@pytest.mark.parametrize(
    ("kind", "name", "says"),
    [
        (WanTransformer3DModel, "hidden_states", "[batch, in_channels, frames, height, width]"),
        (QwenImageTransformer2DModel, "img_shapes", "shapes of [batch, 3]"),
        (CogView4Transformer2DModel, "target_size", "[batch, 2] zeros"),
    ],
)
def test_other_kinds_of_arguments_are_found(kind: type[nn.Module], name: str, says: str) -> None:
    assert found(open_subject(kind.__name__))[name] == says


@pytest.mark.slow
def test_texts_may_have_fixed_lengths_and_tables_come_from_the_pipeline() -> None:
    case = next(c for c in FAMILIES if c.recipe_name == "hunyuan-dit")
    call = found(subject_of(case.make()))
    assert call["encoder_hidden_states_t5"] == "[batch, text_len_t5, cross_attention_dim_t5]"
    assert call["text_embedding_mask"] == "[batch, text_len] ones"
    assert call["image_rotary_emb"] == "pair of [patches, attention_head_dim]"
    assert call["style"] == "[batch] zeros int"


def test_squares_are_tried_last() -> None:
    case = next(c for c in FAMILIES if c.recipe_name == "dit-xl-2")
    subject = subject_of(case.make())
    call = find_call(build_on_meta(subject), subject.config)
    assert call.sizes.height == call.sizes.width
    assert call.arguments["class_labels"].kind == "int"


def test_what_the_user_gives_is_taken() -> None:
    assert found(
        open_subject("sd3-medium"), "timestep=batch:zeros", "hidden_states=batch,16,height,width"
    ) == {
        "hidden_states": "[batch, 16, height, width]",
        "encoder_hidden_states": "[batch, text, joint_attention_dim]",
        "pooled_projections": "[batch, pooled_projection_dim]",
        "timestep": "[batch] zeros",
    }


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("timestep", "found no name=dimensions; write name=batch,text,16"),
        ("timestep=bach", r"'bach' is no size \(did you mean 'batch'\?\); accepted: batch, text"),
        ("timestep=batch:zero", "found 'zero'; accepted: zeros, ones, grid_ids, float, int, bool"),
        ("timesteps=batch", r"forward has no such argument; it has .*did you mean 'timestep'"),
    ],
)
def test_what_the_user_gives_is_checked(text: str, message: str) -> None:
    with pytest.raises(InspectionError, match=message):
        found(open_subject("sd3-medium"), text)


def test_a_call_that_never_runs_says_where_it_stops_and_what_the_line_reads() -> None:
    message = (
        r"no example call of SD3Transformer2DModel was found in \d+ tries.*"
        r"`hidden_states = self.pos_embed\(hidden_states\).*the line reads hidden_states.*--input hidden"
    )
    with pytest.raises(InspectionError, match=message):
        found(open_subject("sd3-medium"), "hidden_states=batch,5,height,width")


class Odd(nn.Module):
    """Needs something that no rule knows."""

    def forward(self, hidden_states: torch.Tensor, weather: torch.Tensor) -> torch.Tensor:
        return hidden_states * weather


def test_an_argument_that_no_rule_knows_is_named() -> None:
    with pytest.raises(
        InspectionError,
        match=r"Odd.forward needs 'weather' \(torch.Tensor\), of which nothing is known; give it",
    ):
        find_call(Odd(), {"in_channels": 4})
    call = find_call(Odd(), {"in_channels": 4}, parse_inputs(["weather=batch,1,1,1:ones"], {}))
    assert call.arguments["hidden_states"].shape == ("batch", "in_channels", "height", "width")


@pytest.mark.parametrize(
    ("argument", "expected"),
    [
        (Argument(("batch", "tokens", "wide")), (2, 12, 5)),
        (Argument(("tokens", 3), "grid_ids"), (12, 3)),
        (Argument(("batch", "sequence"), "ones", "bool"), (2, 19)),
    ],
)
def test_values_are_made_of_sizes_and_fields(argument: Argument, expected: tuple[int, ...]) -> None:
    value = make(argument, CallSizes(2, 7, 4, 3), {"wide": 5}, torch.device("cpu"))
    assert tuple(value.shape) == expected


def test_forms_other_than_tensors() -> None:
    sizes = CallSizes(2, 7, 4, 3)
    host: Any = torch.device("cpu")
    assert make(Argument(("height",), form="number"), sizes, {}, host) == 4
    assert make(Argument(("batch", 3), form="shapes"), sizes, {}, host) == [[(1, 4, 3)]] * 2
    assert [t.shape for t in make(Argument(("batch", "text", 8), form="list"), sizes, {}, host)] == [
        (7, 8)
    ] * 2
    assert len(make(Argument(("tokens", 8), form="pair"), sizes, {}, host)) == 2
    ids = make(Argument(("tokens", 3), "grid_ids"), sizes, {}, host)
    assert ids[-1].tolist() == [0.0, 3.0, 2.0]
