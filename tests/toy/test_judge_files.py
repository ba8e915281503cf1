"""Files that are missing, cut short, or not what they should be: what loading and resuming say."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from sdtm_fx.errors import SdtmFxError
from sdtm_fx.toy import judge as judge_module
from sdtm_fx.toy.captions import CaptionEncoder
from sdtm_fx.toy.files import WEIGHTS_FILE, read_checkpoint, read_model
from sdtm_fx.toy.judge import WEIGHTS, Judge, load_judge
from sdtm_fx.toy.judge_train import JudgeConfig, train_judge

TINY = JudgeConfig(steps=1, warmup=1, batch=2, width=4, bfloat16=False)
CUTS: tuple[Callable[[int], int], ...] = (
    lambda size: 0,
    lambda size: 5,
    lambda size: size // 2,
    lambda size: size - 10,
    lambda size: size - 1,
)


def cut(path: Path, length: Callable[[int], int]) -> None:
    content = path.read_bytes()
    path.write_bytes(content[: length(len(content))])


@pytest.fixture
def weights(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    shutil.copytree(WEIGHTS, tmp_path / "judge")
    monkeypatch.setattr(judge_module, "WEIGHTS", tmp_path / "judge")
    return tmp_path / "judge"


@pytest.mark.parametrize("length", CUTS)
@pytest.mark.parametrize("name", [WEIGHTS_FILE, "config.json"])
def test_weights_cut_short(weights: Path, name: str, length: Callable[[int], int]) -> None:
    assert load_judge().words  # whole, they load from there
    cut(weights / name, length)
    if name == "config.json" and length is CUTS[-1]:
        assert load_judge().words  # the last byte of the configuration is a line break
        return
    with pytest.raises(
        SdtmFxError, match=rf"{name} is not whole \(\d+ bytes: .*\); it was cut short or damaged"
    ):
        load_judge()


@pytest.mark.parametrize("name", [WEIGHTS_FILE, "config.json"])
def test_weights_that_are_missing(weights: Path, name: str) -> None:
    (weights / name).unlink()
    with pytest.raises(SdtmFxError, match=rf"{name} is missing; install the package again"):
        load_judge()


def test_weights_of_another_model(weights: Path, tmp_path: Path) -> None:
    CaptionEncoder().save_pretrained(tmp_path / "encoder")
    shutil.copy(tmp_path / "encoder" / WEIGHTS_FILE, weights)
    with pytest.raises(SdtmFxError, match=r"does not hold the weights of Judge: missing_keys: .*stem\.conv"):
        load_judge()
    assert isinstance(read_model(CaptionEncoder, tmp_path / "encoder"), CaptionEncoder)


@pytest.mark.parametrize("length", CUTS)
def test_a_checkpoint_cut_short(tmp_path: Path, length: Callable[[int], int]) -> None:
    train_judge(TINY, tmp_path)
    assert read_checkpoint(tmp_path / "checkpoint.pt")["step"] == 1
    cut(tmp_path / "checkpoint.pt", length)
    message = (
        r"checkpoint\.pt is not a whole checkpoint \(\d+ bytes: \w+\); it was cut short or damaged: put a"
    )
    with pytest.raises(SdtmFxError, match=message):
        train_judge(TINY, tmp_path, resume=True)


def test_a_checkpoint_that_is_something_else(tmp_path: Path) -> None:
    path = tmp_path / "checkpoint.pt"
    with pytest.raises(SdtmFxError, match=r"nothing to resume or export: .*checkpoint\.pt is missing"):
        read_checkpoint(path)
    path.write_text("hello")
    with pytest.raises(SdtmFxError, match="is not a whole checkpoint"):
        read_checkpoint(path)
    torch.save(Judge(width=4), path)  # a pickled object, which is never executed
    with pytest.raises(SdtmFxError, match=r"is not a whole checkpoint .*UnpicklingError"):
        read_checkpoint(path)
