"""Bad input: every refusal says what was found, what is accepted, and the nearest spelling."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from typer.testing import CliRunner

import sdtm_fx
from sdtm_fx.bench import options
from sdtm_fx.bench.configs import MODELS, bench_model
from sdtm_fx.cli.main import app
from sdtm_fx.errors import SdtmFxError

SD3, FLUX = MODELS["sd3-medium"], MODELS["flux.1-dev"]


def test_unknown_model_names_the_nearest() -> None:
    with pytest.raises(
        sdtm_fx.RewriteError, match=r"no benchmark model 'sd3-medum'.*did you mean 'sd3-medium'"
    ):
        bench_model("sd3-medum")


@pytest.mark.parametrize(
    ("word", "dtype"), [("float32", torch.float32), ("bf16", torch.bfloat16), ("float16", torch.float16)]
)
def test_dtypes(word: str, dtype: torch.dtype) -> None:
    assert options.dtype_of(word) == dtype


def test_unknown_dtype_names_the_nearest() -> None:
    with pytest.raises(
        SdtmFxError, match=r"dtype: no 'bfloat61' \(did you mean 'bfloat16'\?\); accepted: float32, bfloat16"
    ):
        options.dtype_of("bfloat61")


@pytest.mark.parametrize("word", ["cdua", "cuda:x", "cuda:", "cpu:0", "mps"])
def test_unknown_devices(word: str) -> None:
    with pytest.raises(SdtmFxError, match=rf"device: no '{word}'.*accepted: cpu, cuda, cuda:0"):
        options.device_of(word)


def test_a_misspelt_device_names_the_nearest() -> None:
    with pytest.raises(SdtmFxError, match=r"did you mean 'cuda'"):
        options.device_of("cdua")


@pytest.mark.parametrize("word", ["cuda", "cuda:0"])
def test_cuda_where_there_is_none(monkeypatch: pytest.MonkeyPatch, word: str) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(SdtmFxError, match=rf"'{word}', but torch sees no CUDA device.*accepted: cpu"):
        options.device_of(word)


def test_a_cuda_device_that_is_not_there(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    assert options.device_of("cuda:1") == torch.device("cuda:1")
    with pytest.raises(SdtmFxError, match=r"'cuda:2', but there are 2; accepted: cpu, cuda:0 to cuda:1"):
        options.device_of("cuda:2")


def test_modes() -> None:
    assert options.mode_of(None, compiled=False) is None
    assert options.mode_of("reduce-overhead", compiled=True) == "reduce-overhead"
    with pytest.raises(
        SdtmFxError,
        match=r"mode: no 'reduce-overhed' \(did you mean 'reduce-overhead'\?\); accepted: default",
    ):
        options.mode_of("reduce-overhed", compiled=True)
    with pytest.raises(SdtmFxError, match=r"mode: 'max-autotune' is a mode of compiling; add --compile"):
        options.mode_of("max-autotune", compiled=False)


@pytest.mark.parametrize(("text", "layers"), [("2", (2, 2)), ("1,2", (1, 2)), (" 1, 2", (1, 2)), ("0", None)])
def test_layers(text: str, layers: tuple[int, ...] | None) -> None:
    assert options.layers_of(text, FLUX) == layers


@pytest.mark.parametrize("text", ["", "one", "1,", "1,,2", "-1", "1.5", "1;2", "0,2"])
def test_malformed_layers(text: str) -> None:
    with pytest.raises(SdtmFxError, match=r"layers: found .*such as 1,2"):
        options.layers_of(text, FLUX)


def test_layers_of_kinds_that_the_model_does_not_have() -> None:
    with pytest.raises(SdtmFxError, match=r"3 numbers in '1,2,3', the model has 2 kinds.*num_single_layers"):
        options.layers_of("1,2,3", FLUX)
    with pytest.raises(SdtmFxError, match=r"2 numbers in '1,2', the model has 1 kind of blocks; accepted: 0"):
        options.layers_of("1,2", SD3)


def test_images_are_whole_tokens() -> None:
    assert options.grid_of(1024, 768, SD3) == (64, 48)
    with pytest.raises(
        SdtmFxError, match=r"width: found 1000; accepted: multiples of 16, the nearest is 992"
    ):
        options.grid_of(1024, 1000, SD3)
    with pytest.raises(SdtmFxError, match=r"height: found 0; .* the nearest is 16"):
        options.grid_of(0, 1024, SD3)


def test_results_have_a_place_before_anything_is_measured(tmp_path: Path) -> None:
    out = tmp_path / "bench.json"
    assert options.check_files(out, None, growth=True) == tmp_path / "bench.png"
    assert options.check_files(out, tmp_path / "own.svg", growth=True) == tmp_path / "own.svg"
    assert options.check_files(out, None, growth=False) is None
    assert options.check_files(None, None, growth=True) is None
    with pytest.raises(SdtmFxError, match=r"out: there is no folder .*missing.* to write bench\.json to"):
        options.check_files(tmp_path / "missing" / "bench.json", None, growth=False)
    with pytest.raises(SdtmFxError, match=r"figure: found .*accepted: names that end in \.png, \.svg, \.pdf"):
        options.check_files(out, tmp_path / "growth.txt", growth=True)
    with pytest.raises(SdtmFxError, match="figure: there is one of growth only; add --growth"):
        options.check_files(out, tmp_path / "growth.png", growth=False)


def test_a_cache_is_refused_where_it_would_not_show(tmp_path: Path) -> None:
    options.check_cache(tmp_path / "cache", compiled=True, steps=4)
    options.check_cache(None, compiled=False, steps=0)
    with pytest.raises(SdtmFxError, match=r"cache: nothing is compiled .*add --compile"):
        options.check_cache(tmp_path / "cache", compiled=False, steps=4)
    with pytest.raises(SdtmFxError, match=r"cache: first calls are timed over a schedule only; add --steps"):
        options.check_cache(tmp_path / "cache", compiled=True, steps=0)
    with pytest.raises(SdtmFxError, match=r"cache: there is no folder .*missing.* to write cache to"):
        options.check_cache(tmp_path / "missing" / "cache", compiled=True, steps=4)


def test_the_command_shows_errors_as_text() -> None:
    result = CliRunner().invoke(app, ["bench", "--layers", "1,2"])
    assert result.exit_code == 1
    assert "SdtmFxError: layers: 2 numbers in '1,2'" in result.stderr
