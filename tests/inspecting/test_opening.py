"""What MODEL means on the command line."""

from __future__ import annotations

from pathlib import Path

import pytest
from diffusers import FluxTransformer2DModel, SD3Transformer2DModel

from sdtm_fx.errors import InspectionError
from sdtm_fx.inspecting.building import build_on_meta, layer_fields, small_configs, weights, with_layers
from sdtm_fx.inspecting.opening import Subject, open_subject
from tests.inspecting.models import write_config
from tests.pipelines import tiny_sd3_transformer

SD3 = {"_class_name": "SD3Transformer2DModel", "num_layers": 3, "sample_size": 8}


def test_a_class_has_its_defaults() -> None:
    subject = open_subject("FluxTransformer2DModel")
    assert (subject.kind, subject.config["num_layers"]) == (FluxTransformer2DModel, 19)


def test_a_class_takes_a_config_file(tmp_path: Path) -> None:
    subject = open_subject("SD3Transformer2DModel", write_config(tmp_path, SD3))
    assert subject.config == {"num_layers": 3, "sample_size": 8}


def test_a_published_shape_is_known_by_name() -> None:
    subject = open_subject("sd3-medium")
    assert (subject.kind, subject.config["num_layers"]) == (SD3Transformer2DModel, 24)


@pytest.mark.parametrize("place", [".", "transformer", "unet"])
def test_a_folder_may_be_that_of_a_model_or_of_a_pipeline(tmp_path: Path, place: str) -> None:
    tiny_sd3_transformer(layers=3).save_config(tmp_path / place)
    subject = open_subject(str(tmp_path))
    assert (subject.name, subject.config["num_layers"]) == ("SD3Transformer2DModel", 3)


def test_a_config_file_alone_is_enough(tmp_path: Path) -> None:
    assert open_subject(str(write_config(tmp_path, SD3))).name == "SD3Transformer2DModel"


@pytest.mark.parametrize(
    ("model", "data", "message"),
    [
        ("SD3Transformr2DModel", None, r"no model class of diffusers .*did you mean 'SD3Transformer2DModel'"),
        ("sd3-medum", None, r"did you mean 'sd3-medium'"),
        (
            "SD3Transformer2DModel",
            SD3 | {"num_layer": 1},
            r"has no field 'num_layer' \(did you mean 'num_layers'\?\)",
        ),
        (
            "FluxTransformer2DModel",
            SD3,
            "is the config of a SD3Transformer2DModel, and FluxTransformer2DModel was asked",
        ),
        ("UNet2DModel", [1], "found a list; a config is a mapping"),
    ],
)
def test_it_says_what_does_not_fit(
    tmp_path: Path, model: str, data: dict | list | None, message: str
) -> None:
    config = None if data is None else write_config(tmp_path, data)  # type: ignore[arg-type]
    with pytest.raises(InspectionError, match=message):
        open_subject(model, config)


def test_it_says_what_is_missing(tmp_path: Path) -> None:
    with pytest.raises(InspectionError, match=r"no such file; give the config.json of a diffusers model"):
        open_subject("SD3Transformer2DModel", tmp_path / "nowhere.json")
    with pytest.raises(InspectionError, match=r"no config\.json here, nor in transformer/, unet/"):
        open_subject(str(tmp_path))
    broken = tmp_path / "config.json"
    broken.write_text("{")
    with pytest.raises(InspectionError, match="not JSON"):
        open_subject(str(tmp_path))
    with pytest.raises(
        InspectionError, match=r"a checkpoint folder has its own config.json; leave --config out"
    ):
        open_subject(str(tmp_path), broken)
    nameless = write_config(tmp_path / "nameless", {"num_layers": 1})
    with pytest.raises(
        InspectionError, match=r"no _class_name; say which class it is for: CLASS --config config.json"
    ):
        open_subject(str(nameless))


def test_fields_without_defaults_are_asked_for() -> None:
    with pytest.raises(InspectionError, match=r"needs sample_size, which have no defaults"):
        from sdtm_fx.inspecting import opening

        class Needs(SD3Transformer2DModel):
            def __init__(self, sample_size: int, layers: int = 1) -> None: ...

        opening._check_fields(Needs, {"layers": 2}, "a test")


def test_a_config_that_the_class_refuses_is_named() -> None:
    refused = Subject(SD3Transformer2DModel, {"attention_head_dim": None}, "a test")
    with pytest.raises(InspectionError, match=r"cannot be built from a test: TypeError.*--config"):
        build_on_meta(refused)


def test_layers_are_cut_and_widths_stay() -> None:
    config = {
        "num_layers": 24,
        "num_single_layers": 1,
        "transformer_layers_per_block": (1, 2, 10),
        "layers_per_block": 2,
        "attention_head_dim": 64,
        "block_out_channels": (320, 640),
        "dual_attention_layers": (0, 1, 2, 12),
    }
    cut = with_layers(config, 2)
    assert {n for n in config if cut[n] != config[n]} == {"num_layers", "transformer_layers_per_block"}
    assert (cut["num_layers"], cut["transformer_layers_per_block"]) == (2, (1, 2, 2))
    assert layer_fields(config) == ("num_layers", "num_single_layers", "layers_per_block")


def test_smaller_copies_of_a_large_model_are_narrower() -> None:
    large = open_subject("flux.1-dev")
    config, said = next(small_configs(large, 1))
    assert weights(build_on_meta(large, config)) < 40_000_000
    assert (config["num_layers"], config["attention_head_dim"]) == (1, 128)
    assert config["num_attention_heads"] < 24
    assert "widths divided by" in said


def test_a_small_model_is_its_own_copy() -> None:
    model = tiny_sd3_transformer(layers=3)
    subject = Subject(type(model), {n: v for n, v in model.config.items() if not n.startswith("_")}, "a test")
    assert next(small_configs(subject, 1)) == (dict(subject.config), "the model itself")
