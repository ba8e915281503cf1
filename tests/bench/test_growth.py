"""Growth: the exponent that fits, what plans take of a call, the figure, and rewriting by structure."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

import sdtm_fx
from sdtm_fx.bench import configs
from sdtm_fx.bench.depth import time_depths
from sdtm_fx.bench.figure import draw_growth
from sdtm_fx.bench.growth import growth_of
from sdtm_fx.bench.measure import StageTiming
from sdtm_fx.bench.pairing import BenchSetup
from sdtm_fx.bench.parts import PartTimes, plan_shares, time_parts
from sdtm_fx.bench.report import depth_table, growth_table, plan_table
from sdtm_fx.rewriting import programs
from sdtm_fx.rewriting.serving import variants_of

SETUP = BenchSetup(
    ratio=0.5, layers=(1,), grid=(8, 8), batch=1, dtype=torch.float32, device=torch.device("cpu"), runs=1
)


def power_law(stage: str, exponent: float) -> list[PartTimes]:
    """Timings that grow by a power of the tokens, the largest first."""
    return [
        PartTimes(stage, n, n // 2, 0.5e-9 * n**exponent, 0.25e-9 * n**exponent, 0.25e-9 * n**exponent)
        for n in (16384, 4096, 1024)
    ]


def cells(table: object, column: int) -> list[str]:
    return list(table.columns[column].cells)  # type: ignore[attr-defined]


def test_the_exponent_of_a_power_law_is_found() -> None:
    linear, square = growth_of([*power_law("structure", 1.0), *power_law("detail", 2.0)])
    assert (linear.stage, linear.tokens) == ("structure", (1024, 4096, 16384))
    assert linear.exponent == pytest.approx(1)
    assert linear.factor == pytest.approx(1e-9)
    assert linear.is_linear
    assert square.exponent == pytest.approx(2)
    assert not square.is_linear
    assert cells(growth_table([linear, square], ""), 3) == ["1.00", "2.00"]
    assert cells(growth_table([linear, square], ""), 4) == ["linear", "not linear"]


def test_one_size_does_not_make_a_growth() -> None:
    assert growth_of(power_law("structure", 1.0)[:1]) == ()


def test_the_figure_is_drawn(tmp_path: Path) -> None:
    growths = growth_of([*power_law("structure", 1.0), *power_law("detail", 2.0)])
    draw_growth(growths, "a title", tmp_path / "growth.png")
    assert (tmp_path / "growth.png").read_bytes().startswith(b"\x89PNG")
    draw_growth(growths, "a title", tmp_path / "growth.svg")
    assert "</svg>" in (tmp_path / "growth.svg").read_text()


def test_plans_are_weighed_by_how_many_a_call_makes() -> None:
    stages = [
        StageTiming("structure", 64, 32, 2.0, (2.0,), 0.2, 0.1, plans=4),
        StageTiming("detail", 64, 32, 2.0, (2.0,), 0.2, 0.1, plans=2),
        StageTiming("forecast", 64, 0, 2.0, (2.0,), 0.2, 0.1, plans=0),
    ]
    parts = [PartTimes("structure", 64, 32, 0.001, 1, 1), PartTimes("detail", 64, 32, 0.0005, 1, 1)]
    shares = plan_shares(stages, parts)
    assert {s.stage: s.share for s in shares} == pytest.approx({"structure": 0.04, "detail": 0.01})
    assert cells(plan_table(shares, ""), 4) == ["4.00 %", "1.00 %"]


@pytest.mark.parametrize("share", [[], ["cfg"], ["batch"]], ids=["alone", "cfg", "batch"])
@pytest.mark.parametrize("name", ["ssm", "local_match", "tome", "random"])
def test_parts_of_any_method_are_timed(small_sd3: configs.BenchModel, share: list[str], name: str) -> None:
    recipe = sdtm_fx.load_recipe("sd3-medium-windows").override(
        {
            "stages.structure.method": {"name": name},
            "stages.detail.method": {"name": "local_match"},
            "plan.share": share,
        }
    )
    ticks: list[int] = []
    times = time_parts(small_sd3, recipe, SETUP, [(4, 4), (8, 8)], lambda: ticks.append(1))
    assert [(t.stage, t.tokens, t.removed) for t in times] == [
        ("structure", 16, 8 if name != "ssm" else 6), ("structure", 64, 32 if name != "ssm" else 30),
        ("detail", 16, 8), ("detail", 64, 32),
    ]  # fmt: skip
    assert len(ticks) == 4
    for t in times:
        assert min(t.plan_seconds, t.merge_seconds, t.unmerge_seconds) > 0
        assert t.seconds == t.plan_seconds + t.merge_seconds + t.unmerge_seconds


def test_stages_without_plans_of_their_own_have_no_parts(small_sd3: configs.BenchModel) -> None:
    recipe = sdtm_fx.load_recipe("sd3-medium-windows").override(
        {"stages.structure.method": {"name": "skip"}, "stages.detail.method": {"name": "idm"}}
    )
    assert time_parts(small_sd3, recipe, SETUP, [(8, 8)]) == ()


def test_passes_run_once_for_each_structure_whatever_the_depth(
    small_flux: configs.BenchModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    runs: list[int] = []
    run_passes = programs.run_passes

    def counting(*args: object) -> dict[str, int]:
        runs.append(1)
        return run_passes(*args)  # type: ignore[arg-type]

    monkeypatch.setattr(programs, "run_passes", counting)
    recipe = sdtm_fx.load_recipe("flux.1-dev-windows").override({"sites.*.expect": None})
    counted = []
    for depth in (1, 3):
        model = configs.build(small_flux, (depth, depth), torch.float32, torch.device("cpu"))
        runs.clear()
        sdtm_fx.rewrite(model, recipe)
        counted.append(len(runs))
    assert counted[0] == counted[1] == 2 * len(variants_of(recipe)[:-1])


@pytest.mark.slow
def test_depths_tell_tracing_from_rewriting(small_sd3: configs.BenchModel) -> None:
    ticks: list[int] = []
    times = time_depths(small_sd3, sdtm_fx.load_recipe("sd3-medium-windows"), (2, 4), lambda: ticks.append(1))
    assert [(t.blocks, t.structures) for t in times] == [(2, 2), (4, 2)]
    assert len(ticks) == 2
    for t in times:
        assert t.tracing_seconds > 0
        assert t.rewriting_seconds > 0
        assert t.total_seconds == pytest.approx(t.tracing_seconds + t.rewriting_seconds + t.rest_seconds)
    assert times[1].tracing_seconds > times[0].tracing_seconds
    assert cells(depth_table(times, ""), 0) == ["2", "4"]
