"""Toy weights that are cut short or missing: what `load_toy` says."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from sdtm_fx.errors import SdtmFxError
from sdtm_fx.toy import load as load_module
from sdtm_fx.toy.load import WEIGHTS, load_toy

FILES = (
    "transformer/config.json",
    "transformer/diffusion_pytorch_model.safetensors",
    "text_encoder/config.json",
    "text_encoder/diffusion_pytorch_model.safetensors",
    "scheduler/scheduler_config.json",
)


@pytest.mark.parametrize("name", FILES)
def test_files_of_a_toy_that_are_cut_short_or_missing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    shutil.copytree(WEIGHTS / "sd3", tmp_path / "sd3")
    monkeypatch.setattr(load_module, "WEIGHTS", tmp_path)
    path = tmp_path / "sd3" / name
    content = path.read_bytes()
    path.write_bytes(content[: len(content) // 2])
    with pytest.raises(
        SdtmFxError, match=rf"{name} is not whole \(\d+ bytes: .*\); it was cut short or damaged"
    ):
        load_toy("sd3")
    path.unlink()
    with pytest.raises(SdtmFxError, match=rf"{name} is missing; install the package again"):
        load_toy("sd3")
