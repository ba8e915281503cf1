"""The benchmark harness on a model small enough to time in a test; the times themselves are not judged."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import pytest
import torch

import sdtm_fx
from sdtm_fx.bench import configs
from sdtm_fx.bench.measure import BenchSetup, bench_stages
from sdtm_fx.cli.bench import bench

SMALL = {"num_attention_heads": 2, "attention_head_dim": 8, "caption_projection_dim": 16, "joint_attention_dim": 16,
         "pooled_projection_dim": 16, "sample_size": 16}  # fmt: skip


@pytest.fixture
def small_sd3(monkeypatch: pytest.MonkeyPatch) -> configs.BenchModel:
    full = configs.MODELS["sd3-medium"]
    small = dataclasses.replace(full, config={**full.config, **SMALL})
    monkeypatch.setitem(configs.MODELS, "sd3-medium", small)
    return small


def test_stages_are_paired_with_dense(small_sd3: configs.BenchModel) -> None:
    pairs = []
    setup = BenchSetup(
        0.5, 2, height=256, width=192, batch=1, dtype=torch.float32, device=torch.device("cpu"), runs=3
    )
    recipe = sdtm_fx.load_recipe("sd3-medium")
    timings = bench_stages(small_sd3, recipe, setup, on_run=lambda: pairs.append(1))
    assert [t.stage for t in timings] == ["structure", "detail"]
    assert len(pairs) == 6
    for timing in timings:
        assert timing.tokens == 16 * 12
        assert timing.kept == pytest.approx(96, abs=8)
        assert len(timing.ratios) == 3
        assert timing.measured == sorted(timing.ratios)[1]
        assert timing.efficiency == timing.measured / timing.theoretical
    assert timings[0].theoretical > timings[1].theoretical > 1


def test_command_writes_a_record(
    small_sd3: configs.BenchModel, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    bench(model="sd3-medium", layers=1, height=128, width=128, runs=1, mode=None, out=tmp_path / "bench.json")
    record = json.loads((tmp_path / "bench.json").read_text())
    assert record["torch"] == torch.__version__
    assert [s["stage"] for s in record["stages"]] == ["structure", "detail"]
    assert "efficiency" in capsys.readouterr().out


def test_weights_are_seeded_and_finite(small_sd3: configs.BenchModel) -> None:
    first, second = (configs.build(small_sd3, 1, torch.float16, torch.device("cpu")) for _ in range(2))
    for a, b in zip(first.parameters(), second.parameters(), strict=True):
        assert torch.equal(a, b)
        assert a.isfinite().all()


def test_unknown_model_names_the_nearest() -> None:
    with pytest.raises(
        sdtm_fx.RewriteError, match=r"no benchmark model 'sd3-medum'.*did you mean 'sd3-medium'"
    ):
        configs.bench_model("sd3-medum")


@pytest.mark.slow
@pytest.mark.compile
def test_a_whole_schedule_is_compiled_and_weighed(
    small_sd3: configs.BenchModel, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "bench.json"
    bench(
        model="sd3-medium", layers=1, height=128, width=128, runs=1, compile=True, mode=None, steps=12, parts=True,
        growth=False, ratio=0.5, out=out,
    )  # fmt: skip
    record = json.loads(out.read_text())
    schedule = record["schedule"]
    assert sum(phase["steps"] for phase in schedule["phases"]) == 12
    assert schedule["theoretical"] > 1
    assert schedule["efficiency"] == schedule["measured"] / schedule["theoretical"]
    labels = [phase["label"] for phase in schedule["phases"]]
    assert any("structure" in label for label in labels)
    assert any("detail" in label for label in labels)
    shares = record["breakdown"]["structure"]
    assert sum(shares.values()) == pytest.approx(1)
    assert set(shares) == {"plan", "merge", "unmerge", "features", "rest"}
    assert {part["stage"] for part in record["parts"]} == {"structure", "detail"}
    assert "efficiency" in capsys.readouterr().out
