"""Measurements of devices: what they predict, and the files that they are kept in."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch

import sdtm_fx
from sdtm_fx.cost.effort import Effort
from sdtm_fx.cost.profile import DeviceKey
from sdtm_fx.cost.profile_cache import VARIABLE, cache_folder, load_profiles, profile_path, save_profile
from sdtm_fx.errors import CalibrationError
from tests.rates import made_up


@pytest.fixture(autouse=True)
def _known_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(VARIABLE, str(tmp_path))


def test_a_prediction_is_the_sum_of_the_parts() -> None:
    profile = made_up(linear=10.0, gathered=4.0, launch=0.5)
    assert profile.seconds(Effort(linear=20, gathered=2, launches=3)) == pytest.approx(2 + 0.5 + 1.5)
    assert profile.seconds(Effort(linear=-20)) == pytest.approx(-2)


def test_a_profile_is_kept_by_device_dtype_threads_version_and_compilation() -> None:
    one = made_up(linear=1.0)
    others = [
        replace(one.key, **change)
        for change in (
            {"device": "cuda: X"}, {"dtype": "bfloat16"}, {"torch_version": "0"}, {"threads": 99}, {"compiled": True},
        )
    ]  # fmt: skip
    kept = [one, *(replace(one, key=key) for key in others)]
    assert len({save_profile(profile) for profile in kept}) == 6
    assert load_profiles() == {profile.key: profile for profile in kept}
    save_profile(replace(one, linear=2.0))
    assert load_profiles()[one.key].linear == 2.0
    assert not list(cache_folder().rglob("*.part"))


def test_the_cache_folder_follows_the_environment(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    assert cache_folder() == tmp_path
    assert load_profiles() == {}, "a folder that is not there holds nothing"
    monkeypatch.delenv(VARIABLE)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "xdg"))
    assert cache_folder() == tmp_path / "xdg" / "sdtm_fx"
    monkeypatch.delenv("XDG_CACHE_HOME")
    monkeypatch.setattr(Path, "home", lambda: tmp_path / "home")
    assert cache_folder() == tmp_path / "home" / ".cache" / "sdtm_fx"


def test_the_key_in_words() -> None:
    key = DeviceKey("cuda: H100", "bfloat16", "2.13.0", 0, True)
    assert key.says() == "cuda: H100, bfloat16, compiled, torch 2.13.0"
    assert key.command() == "sdtm-fx calibrate --device cuda --dtype bfloat16 --compiled"
    threads = torch.get_num_threads()
    own = DeviceKey.of(torch.device("cpu"), torch.float32, False)
    assert own.threads == threads
    assert own.device.startswith("cpu: ")
    assert own.command() == f"sdtm-fx calibrate --device cpu --dtype float32 --threads {threads}"


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda d: "{", r"\.json: not JSON \(.*\); delete it, or run `sdtm-fx calibrate` again"),
        (lambda d: "[]", "found format 'list'; accepted: 1"),
        (lambda d: json.dumps({**d, "format": 2}), "found format 2; accepted: 1"),
        (lambda d: json.dumps({**d, "linear": "fast"}), "linear: found 'fast'; accepted: a positive number"),
        (lambda d: json.dumps({**d, "launch": 0}), "launch: found 0; accepted: a positive number"),
        (lambda d: json.dumps({**d, "speed": 1}), "found .*speed.*; accepted: key, linear, attention"),
        (lambda d: json.dumps({**d, "key": None}), "key: found NoneType; accepted: device, dtype, torch"),
        (
            lambda d: json.dumps({**d, "key": {**d["key"], "threads": "1"}}),
            "key: threads: found '1'; accepted: int",
        ),
    ],
)
def test_a_file_that_is_no_profile_is_an_error_and_not_ignored(change: object, message: str) -> None:
    path = save_profile(made_up())
    path.write_text(change(json.loads(path.read_text())))  # type: ignore[operator]
    with pytest.raises(CalibrationError, match=message):
        load_profiles()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"device": "gpu9"}, "found device 'gpu9'; accepted: cpu, cuda"),
        ({"device": "meta"}, "found device 'meta'; accepted: cpu, cuda"),
        ({"dtype": "int8"}, "found dtype 'int8'; accepted: float32, bfloat16, float16"),
        ({"seconds": 0.0}, "found 0.0 seconds; accepted: more than 0"),
    ],
)
def test_what_cannot_be_measured_is_an_error(arguments: dict[str, object], message: str) -> None:
    with pytest.raises(CalibrationError, match=message):
        sdtm_fx.calibrate(**arguments)  # type: ignore[arg-type]


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a CUDA device")
def test_a_device_that_is_not_there_is_an_error() -> None:
    with pytest.raises(CalibrationError, match="this machine has no CUDA device"):
        sdtm_fx.calibrate("cuda")


def test_a_calibration_measures_every_rate_and_is_found_again(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sdtm_fx.cost.calibrate._WIDTH", 64)
    profile = sdtm_fx.calibrate("cpu", torch.float32, seconds=0.1)
    assert load_profiles() == {profile.key: profile}
    assert profile_path(profile.key).is_file()
    assert profile.key == DeviceKey.of(torch.device("cpu"), torch.float32, False)
    assert 1e6 < profile.linear < 1e16
    assert 1e-9 < profile.launch < 1e-2
    assert sdtm_fx.calibrate("cpu", "bfloat16", seconds=0.1, save=False).key.dtype == "bfloat16"
    assert len(load_profiles()) == 1
