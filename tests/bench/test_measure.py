"""Stages against dense: in pairs, with as many blocks as were asked for, and the memory of each side."""

from __future__ import annotations

from typing import Any

import pytest
import torch

import sdtm_fx
from sdtm_fx.bench import configs, memory, pairing
from sdtm_fx.bench.measure import bench_stages, break_down, plans_per_call
from sdtm_fx.bench.options import layers_of
from sdtm_fx.bench.pairing import BenchSetup, pair_of_models
from sdtm_fx.bench.report import stage_table
from sdtm_fx.phase import Phase

SETUP = BenchSetup(
    ratio=0.5, layers=(2,), grid=(16, 12), batch=1, dtype=torch.float32, device=torch.device("cpu"), runs=3
)
FLUX_SETUP = BenchSetup(
    ratio=0.5, layers=(1, 2), grid=(8, 8), batch=1, dtype=torch.float32, device=torch.device("cpu"), runs=1
)


def test_stages_are_paired_with_dense(small_sd3: configs.BenchModel) -> None:
    pairs = []
    recipe = sdtm_fx.load_recipe("sd3-medium-windows").override(
        {"stages.detail.method": {"name": "local_match"}}
    )
    timings = bench_stages(small_sd3, recipe, SETUP, on_run=lambda: pairs.append(1))
    assert [t.stage for t in timings] == ["structure", "detail"]
    assert len(pairs) == 6
    for timing in timings:
        assert timing.tokens == 16 * 12
        assert timing.kept == pytest.approx(96, abs=8)
        assert len(timing.ratios) == 3
        assert timing.measured == sorted(timing.ratios)[1]
        assert timing.efficiency == timing.measured / timing.theoretical
        assert timing.plans == 2
        assert timing.dense_bytes is timing.merged_bytes is None  # nothing counts it on a CPU
    assert timings[0].theoretical > timings[1].theoretical > 1


def test_flux_takes_its_numbers_of_double_and_single_blocks(small_flux: configs.BenchModel) -> None:
    late = {"sites": ["ff", "single_ff"], "method": {"name": "local_match"}}
    recipe = sdtm_fx.load_recipe("flux.1-dev-windows").override({"stages.detail": late})
    timings = bench_stages(small_flux, recipe, FLUX_SETUP)
    assert [t.plans for t in timings] == [3, 3]
    shares = break_down(small_flux, recipe, FLUX_SETUP)
    assert {stage: sum(values.values()) for stage, values in shares.items()} == pytest.approx(
        {"structure": 1, "detail": 1}
    )
    # A call that fell back to a dense step would have none of these.
    assert all(values[part] > 0 for values in shares.values() for part in ("plan", "merge", "unmerge"))


@pytest.mark.parametrize(
    ("text", "blocks"), [("1,2", (1, 2)), ("2", (2, 2)), ("0", (19, 38))], ids=["each", "both", "all"]
)
def test_numbers_of_blocks_become_the_models_own(
    small_flux: configs.BenchModel, text: str, blocks: tuple[int, int]
) -> None:
    layers = layers_of(text, small_flux)
    built: Any = configs.build(small_flux, layers, torch.float32, torch.device("cpu"))
    assert (len(built.transformer_blocks), len(built.single_transformer_blocks)) == blocks


@pytest.mark.parametrize(
    ("changes", "plans"),
    [({}, 3), ({"plan.every_layers": 2}, 2), ({"stages.structure.method": {"name": "skip"}}, 0)],
    ids=["a plan a block", "shared by two blocks", "nothing is planned"],
)
def test_plans_are_counted_by_group(
    small_sd3: configs.BenchModel, changes: dict[str, Any], plans: int
) -> None:
    recipe = sdtm_fx.load_recipe("sd3-medium-windows").override({"sites.*.expect": None, **changes})
    setup = BenchSetup(0.5, (3,), (8, 8), 1, torch.float32, torch.device("cpu"), 1)
    rewriting = pair_of_models(small_sd3, recipe, setup).rewriting
    assert plans_per_call(rewriting, Phase(0, 32, refresh=False)) == plans
    assert plans_per_call(rewriting, Phase(0, 32, refresh=False, fresh_plan=False)) == 0
    assert plans_per_call(rewriting, Phase(None, 0, refresh=True)) == 0


class _Counters:
    """Stands in for the counters of a CUDA device: what a call allocates is what they say."""

    def __init__(self) -> None:
        self.peak = 999
        self.log: list[str] = []

    def reset_peak_memory_stats(self, device: torch.device) -> None:
        self.log.append("reset")
        self.peak = 100

    def max_memory_allocated(self, device: torch.device) -> int:
        self.log.append("read")
        return self.peak

    def synchronize(self, device: torch.device) -> None:
        self.log.append("wait")


def test_the_peak_of_a_call_is_its_own(monkeypatch: pytest.MonkeyPatch) -> None:
    counters, device = _Counters(), torch.device("cuda")
    for name in ("reset_peak_memory_stats", "max_memory_allocated", "synchronize"):
        monkeypatch.setattr(torch.cuda, name, getattr(counters, name))

    def run() -> None:
        counters.log.append("run")
        counters.peak += 50

    assert memory.peak_bytes(run, device) == 150
    assert counters.log == ["wait", "reset", "run", "wait", "read"]
    assert memory.peak_bytes(run, torch.device("cpu")) is None


def test_each_side_is_counted_on_its_own(
    small_sd3: configs.BenchModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    counted: list[str] = []

    def peak(run: Any, device: torch.device) -> int:
        run()
        counted.append(run.__name__)
        return 2**20 * len(counted)

    monkeypatch.setattr(pairing, "peak_bytes", peak)
    timings = bench_stages(small_sd3, sdtm_fx.load_recipe("sd3-medium-windows"), SETUP)
    assert counted == ["run_dense", "run_merged", "run_merged"]
    assert [(t.dense_bytes, t.merged_bytes) for t in timings] == [(2**20, 2 * 2**20), (2**20, 3 * 2**20)]
    assert [c.header for c in stage_table(timings, "").columns][-2:] == ["peak, dense", "peak, merged"]


def test_weights_are_seeded_and_finite(small_sd3: configs.BenchModel) -> None:
    first, second = (configs.build(small_sd3, (1,), torch.float16, torch.device("cpu")) for _ in range(2))
    for a, b in zip(first.parameters(), second.parameters(), strict=True):
        assert torch.equal(a, b)
        assert a.isfinite().all()
