"""The wheel and the sdist hold everything, and the wheel works away from the checkout."""

from __future__ import annotations

import os
import subprocess
import sys
import tarfile
import zipfile
from pathlib import Path

import pytest

from tests.packaging.tree import copy_sources, shipped_files

USE = """
import sdtm_fx, sdtm_fx.passes, torch
from sdtm_fx.toy.random_pipelines import tiny_sd3_pipeline, sd3_prompt_kwargs
from pathlib import Path
assert Path(sdtm_fx.__file__).is_relative_to({target!r}), sdtm_fx.__file__
assert Path(sdtm_fx.passes.__file__).is_relative_to({target!r}), sdtm_fx.passes.__file__
assert "paper/sd3-medium" in sdtm_fx.list_recipes()
recipe = sdtm_fx.load_recipe("sd3-medium-few").override({{"sites.*.expect": None, "plan.round_to": 1}})
pipeline = tiny_sd3_pipeline(layers=2, latent_size=16)
draw = lambda: pipeline(num_inference_steps=4, **sd3_prompt_kwargs()).images
dense = draw()
sdtm_fx.rewrite(pipeline, recipe)
assert not torch.equal(draw(), dense)
sdtm_fx.restore(pipeline)
assert torch.equal(draw(), dense)
"""


def build(source: Path, kind: str, out: Path) -> Path:
    """Build a wheel or an sdist with the installed setuptools: no isolation, so no network."""
    out.mkdir(parents=True, exist_ok=True)
    code = f"from setuptools import build_meta; print('built', build_meta.build_{kind}({str(out)!r}))"
    result = subprocess.run(
        [sys.executable, "-c", code], cwd=source, capture_output=True, text=True, check=False
    )
    assert result.returncode == 0, result.stderr
    return out / result.stdout.strip().splitlines()[-1].removeprefix("built ")


@pytest.fixture(scope="module")
def sdist(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build(copy_sources(tmp_path_factory.mktemp("source")), "sdist", tmp_path_factory.mktemp("dist"))


@pytest.fixture(scope="module")
def wheel(sdist: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The wheel of the sdist, so that whatever the sdist forgets is missing here too."""
    folder = tmp_path_factory.mktemp("unpacked")
    with tarfile.open(sdist) as archive:
        # Python before 3.11.4 and 3.10.12 knows no filters; this archive is our own.
        safely = {"filter": "data"} if hasattr(tarfile, "data_filter") else {}
        archive.extractall(folder, **safely)
    (source,) = folder.iterdir()
    return build(source, "wheel", tmp_path_factory.mktemp("wheel"))


@pytest.mark.slow
def test_the_wheel_holds_every_file_and_nothing_else(wheel: Path) -> None:
    with zipfile.ZipFile(wheel) as archive:
        held = {name for name in archive.namelist() if ".dist-info/" not in name}
    assert held == shipped_files()
    assert sum(name.startswith("sdtm_fx/passes/") for name in held) > 5
    assert sum(name.startswith("sdtm_fx/recipes/") and name.endswith(".yaml") for name in held) > 5
    assert "sdtm_fx/py.typed" in held


@pytest.mark.slow
def test_the_wheel_carries_the_toy(wheel: Path) -> None:
    with zipfile.ZipFile(wheel) as archive:
        sizes = {info.filename: info.file_size for info in archive.infolist()}
    assert sizes["sdtm_fx/toy/weights/sd3/transformer/diffusion_pytorch_model.safetensors"] > 1_000_000
    assert "sdtm_fx/toy/weights/sd3/model_index.json" in sizes


@pytest.mark.slow
def test_the_wheel_states_its_licence_command_and_extras(wheel: Path) -> None:
    with zipfile.ZipFile(wheel) as archive:
        texts = {Path(n).name: archive.read(n).decode() for n in archive.namelist() if ".dist-info/" in n}
    assert "Apache License" in texts["LICENSE"]
    assert "sdtm-fx = sdtm_fx.cli.main:app" in texts["entry_points.txt"]
    assert "Provides-Extra: demo" in texts["METADATA"]
    assert "Requires-Python: >=3.10" in texts["METADATA"]
    assert texts["top_level.txt"].split() == ["sdtm_fx"]


@pytest.mark.slow
def test_the_wheel_rewrites_a_pipeline_from_another_folder(wheel: Path, tmp_path: Path) -> None:
    target, elsewhere = tmp_path / "site", tmp_path / "elsewhere"
    elsewhere.mkdir()
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(target)
    environment = {**os.environ, "PYTHONPATH": str(target), "OMP_NUM_THREADS": "1"}
    # An editable install hooks into `sdtm_fx` after PYTHONPATH is searched, so the unpacked wheel wins.
    result = subprocess.run(
        [sys.executable, "-c", USE.format(target=str(target))],
        cwd=elsewhere, env=environment, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert result.returncode == 0, result.stderr
