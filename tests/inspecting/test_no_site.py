"""Models in which nothing can be merged: said early, with what to do."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from diffusers import AutoencoderKL, T2IAdapter, UNet2DModel
from torch import nn
from typer.testing import CliRunner

from sdtm_fx.cli.main import app
from sdtm_fx.errors import InspectionError
from sdtm_fx.inspecting.inspect import survey
from sdtm_fx.inspecting.lengths import Length
from sdtm_fx.inspecting.no_site import no_site
from sdtm_fx.inspecting.observing import AttentionCall, Observation
from sdtm_fx.inspecting.survey import LeftOut
from tests.inspecting.models import subject_of
from tests.pipelines import tiny_sd3_transformer


def unet() -> nn.Module:
    return UNet2DModel(
        sample_size=8, in_channels=3, out_channels=3, layers_per_block=1, block_out_channels=(8, 8), norm_num_groups=4,
        down_block_types=("DownBlock2D", "AttnDownBlock2D"), up_block_types=("AttnUpBlock2D", "UpBlock2D"),
    )  # fmt: skip


WHERE = (
    "recipes are for blocks that run on sequences of tokens, [batch, tokens, width]: those of diffusion transformers, "
    "and of U-Nets with transformers in them, such as UNet2DConditionModel; leave this model as it is"
)


@pytest.mark.parametrize(
    ("model", "message"),
    [
        (
            unet(),
            "UNet2DModel has no site: attention is computed 4 times, but never in a module that takes tokens: all take "
            "pictures, [batch, channels, height, width] (first: down_blocks.1.attentions.0), between convolutions, for "
            f"which merged tokens lie on no grid; {WHERE}",
        ),
        (
            T2IAdapter(channels=[8, 8], num_res_blocks=1),  # whose forward knows no return_dict
            f"T2IAdapter computes no attention on tokens, so there is nothing to merge; {WHERE}",
        ),
    ],
    ids=["pictures", "convolutions"],
)
def test_a_model_without_tokens_is_refused(model: nn.Module, message: str) -> None:
    with pytest.raises(InspectionError, match=re.escape(message)):
        survey(subject_of(model))


@pytest.mark.parametrize("command", ["inspect", "author"])
def test_an_autoencoder_is_refused_before_it_is_called(command: str, tmp_path: Path) -> None:
    AutoencoderKL(block_out_channels=(4,), norm_num_groups=2).save_config(tmp_path)
    draft = tmp_path / "mine.yaml"
    arguments = [command, str(tmp_path)] + (["-o", str(draft)] if command == "author" else [])
    result = CliRunner().invoke(app, arguments)
    assert result.exit_code == 1
    assert (
        "AutoencoderKL encodes and decodes: an autoencoder runs once for an image and not in every step, so no recipe "
        "is for it; give the model that denoises: the folder of the pipeline, its transformer/ or unet/, or that class"
    ) in result.stderr.replace("\n", " ")
    assert not draft.exists()


def test_attention_that_lies_elsewhere_is_named() -> None:
    subject, length = subject_of(tiny_sd3_transformer()), Length(1, 0, 0)
    calls = [AttentionCall("blocks.0", "softmax", length, length)]
    left_out = [LeftOut("blocks.0", "attention", "the block's own forward computes it, no module of it does")]
    observation = Observation(None, (), {})  # type: ignore[arg-type]
    message = (
        "SD3Transformer2DModel has no site: attention is computed 1 times, but never in a module of a block that takes "
        "[batch, tokens, width] and ends in a residual addition (first: blocks.0: the block's own forward computes it, "
        "no module of it does); what a recipe names has to be such a module: wrap what computes attention into one, or "
        "leave this model as it is"
    )
    assert str(no_site(subject, observation, calls, left_out)) == message
