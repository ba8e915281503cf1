"""Where pipelines, prompts and real scenes come from."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from sdtm_fx.errors import SdtmFxError
from sdtm_fx.evaluate import Row, evaluate
from sdtm_fx.evaluate.models import ModelSource, choose_prompts, read_prompts, real_scenes
from sdtm_fx.recipe import load_recipe
from sdtm_fx.toy import parse_caption, render, sample_scene
from tests.evaluate.checkpoint import save_checkpoint


def test_toys_get_captions_of_scenes_that_training_cannot_draw() -> None:
    toy = ModelSource("toy-sd3")
    prompts = choose_prompts(toy, None, 5, 0)
    assert prompts == tuple(sample_scene(-1 - index).caption for index in range(5))
    assert choose_prompts(toy, None, 3, 2) == prompts[2:]
    assert all(parse_caption(prompt).caption == prompt for prompt in prompts)


def test_real_scenes_are_images_of_other_scenes() -> None:
    images = real_scenes(3, 20, 24)
    assert images.shape == (3, 3, 20, 24)
    assert torch.equal(images[1], render(sample_scene(-(2**40) - 1), 20, 24) / 2 + 0.5)
    assert 0 <= float(images.min()) < float(images.max()) <= 1


def test_prompts_of_a_file_are_taken_in_turn(tmp_path: Path) -> None:
    path = tmp_path / "prompts.txt"
    path.write_text("a lighthouse\n\n  a cat \n")
    assert read_prompts(path) == ("a lighthouse", "a cat")
    assert choose_prompts(ModelSource("toy-sd3"), path, 3, 7) == ("a lighthouse", "a cat", "a lighthouse")


def test_prompts_that_cannot_be_had_are_errors(tmp_path: Path) -> None:
    with pytest.raises(SdtmFxError, match=r"prompts: .*none.txt cannot be read"):
        read_prompts(tmp_path / "none.txt")
    (tmp_path / "empty.txt").write_text("\n \n")
    with pytest.raises(SdtmFxError, match=r"empty.txt has no prompts; write one a line"):
        read_prompts(tmp_path / "empty.txt")
    (tmp_path / "model_index.json").write_text("{}")
    with pytest.raises(SdtmFxError, match=r"is no toy; give a file of prompts, one a line \(--prompts\)"):
        choose_prompts(ModelSource(str(tmp_path)), None, 3, 0)


def test_models_that_are_not_there_are_errors(tmp_path: Path) -> None:
    with pytest.raises(
        SdtmFxError, match=r"no toy and no folder 'toy-sd4' \(did you mean 'toy-sd3'\?\); accepted"
    ):
        ModelSource("toy-sd4")
    with pytest.raises(
        SdtmFxError, match=r"has no model_index.json; it is no checkpoint of a diffusers pipeline"
    ):
        ModelSource(str(tmp_path))
    with pytest.raises(
        SdtmFxError, match=r"no dtype 'float23' \(did you mean 'float32'\?\); accepted: float32"
    ):
        ModelSource("toy-sd3", "float23")
    index = tmp_path / "model_index.json"
    index.write_text(json.dumps({"_class_name": "NoPipeline"}))
    with pytest.raises(SdtmFxError, match="_class_name is 'NoPipeline', which is no pipeline of diffusers"):
        ModelSource(str(tmp_path)).load()
    index.write_text(json.dumps({"_class_name": "DiTPipeline", "vae": ["diffusers", "AutoencoderKL"]}))
    with pytest.raises(SdtmFxError, match="cannot be loaded"):
        ModelSource(str(tmp_path)).load()


def test_a_checkpoint_folder_is_evaluated(tmp_path: Path) -> None:
    pipe = ModelSource(str(save_checkpoint(tmp_path))).load()
    recipe = load_recipe("sd3-medium-few").override(
        {"sites.*.expect": None, "plan.round_to": 16, "layers": []}
    )
    found = evaluate(
        pipe, [Row("merged", "merged", recipe)], prompts=["a lighthouse", "a cat", "a dog"], seeds=range(3),
        steps=4, height=16, width=24, guidance_scale=4.0, batch=2,
    )  # fmt: skip
    result = found.row("merged")
    assert result.images.shape == (3, 3, 16, 24)
    assert len(set(result.psnr)) == 3
    assert all(5 < value < 100 for value in result.psnr)
    assert 0 < result.total < 1
