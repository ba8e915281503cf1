"""The results of benchmarks as tables, and as data for JSON."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import Any

from rich.table import Table

from sdtm_fx.bench.compare import Contender
from sdtm_fx.bench.depth import DepthTiming
from sdtm_fx.bench.growth import Growth
from sdtm_fx.bench.measure import StageTiming
from sdtm_fx.bench.parts import PartTimes, PlanShare
from sdtm_fx.bench.schedule import PhaseTiming, ScheduleTiming


def as_data(timing: StageTiming | PhaseTiming | ScheduleTiming) -> dict[str, Any]:
    """A timing as plain data, with what follows from its fields."""
    data = {**asdict(timing), "measured": timing.measured, "efficiency": timing.efficiency}
    if isinstance(timing, ScheduleTiming):
        data["phases"] = [as_data(phase) for phase in timing.phases]
    return data


def stage_table(timings: Sequence[StageTiming], title: str) -> Table:
    """One row per stage; peak memory where the device counts it."""
    counted = any(t.dense_bytes is not None for t in timings)
    memory = ("peak, dense", "peak, merged") if counted else ()
    table = Table("stage", "tokens", "theoretical", "measured", "spread", "efficiency", *memory, title=title)
    for t in timings:
        row = (t.stage, f"{t.tokens} -> {t.kept}", *_speedups(t))
        table.add_row(*row, *((_mebibytes(t.dense_bytes), _mebibytes(t.merged_bytes)) if counted else ()))
    return table


def schedule_table(schedule: ScheduleTiming, title: str) -> Table:
    """One row per phase, and one for the whole schedule."""
    columns = ("phase", "steps", "theoretical", "measured", "spread", "efficiency", "first call")
    table = Table(*columns, title=title)
    for t in schedule.phases:
        table.add_row(t.label, str(t.steps), *_speedups(t), f"{t.first_seconds:.1f} s")
    table.add_row(
        "all", str(schedule.steps), f"{schedule.theoretical:.2f}x", f"{schedule.measured:.2f}x", "",
        f"{schedule.efficiency:.2f}", f"{sum(t.first_seconds for t in schedule.phases):.1f} s",
    )  # fmt: skip
    return table


def share_table(shares: Mapping[str, Mapping[str, float]], title: str) -> Table:
    """One row per stage: the share of each part in a call."""
    table = Table("stage", *next(iter(shares.values()), {}), title=title)
    for stage, values in shares.items():
        table.add_row(stage, *(f"{100 * value:.1f} %" for value in values.values()))
    return table


def part_table(times: Sequence[PartTimes], title: str) -> Table:
    """One row per stage and size: the parts, each on its own."""
    table = Table("stage", "tokens", "removed", "plan", "merge", "unmerge", title=title)
    for t in times:
        parts = (t.plan_seconds, t.merge_seconds, t.unmerge_seconds)
        table.add_row(t.stage, str(t.tokens), str(t.removed), *map(_milliseconds, parts))
    return table


def plan_table(shares: Sequence[PlanShare], title: str) -> Table:
    """One row per stage: what finding the plans takes of a merged call."""
    table = Table("stage", "plans per call", "one plan", "merged call", "plans in the call", title=title)
    for s in shares:
        table.add_row(
            s.stage, str(s.plans), _milliseconds(s.plan_seconds), _milliseconds(s.call_seconds),
            f"{100 * s.share:.2f} %",
        )  # fmt: skip
    return table


def growth_table(growths: Sequence[Growth], title: str) -> Table:
    """One row per stage: the fitted exponent, and whether it is that of linear growth."""
    table = Table("stage", "tokens", "plan + merge + unmerge", "exponent", "growth", title=title)
    for g in growths:
        table.add_row(
            g.stage, f"{g.tokens[0]} to {g.tokens[-1]}",
            f"{_milliseconds(g.seconds[0])} to {_milliseconds(g.seconds[-1])}", f"{g.exponent:.2f}",
            "linear" if g.is_linear else "not linear",
        )  # fmt: skip
    return table


def depth_table(times: Sequence[DepthTiming], title: str) -> Table:
    """One row per depth: where the time of `rewrite` goes."""
    columns = ("blocks", "structures", "rewrite", "tracing", "passes", "per structure", "rest")
    table = Table(*columns, title=title)
    for t in times:
        parts = (t.tracing_seconds, t.rewriting_seconds, t.rewriting_seconds / t.structures, t.rest_seconds)
        seconds = (f"{value:.2f} s" for value in (t.total_seconds, *parts))
        table.add_row(str(t.blocks), str(t.structures), *seconds)
    return table


def contender_as_data(contender: Contender) -> dict[str, Any]:
    """A contender as plain data, with what follows from its fields."""
    names = ("theoretical", "measured", "efficiency", "planning_macs", "planning_time")
    return {**asdict(contender), **{name: getattr(contender, name) for name in names}}


CONTENDER_COLUMNS = (
    "recipe",
    "stage",
    "tokens",
    "MACs of plans",
    "time of plans",
    "theory",
    "measured",
    "efficiency",
)
"""What `contender_cells` says; what plans take is told in parts of a dense call."""


def contender_cells(c: Contender) -> tuple[str, ...]:
    """A row of a comparison."""
    low, high = (100 * bound for bound in (min(c.planning_times), max(c.planning_times)))
    return (
        c.recipe, f"{c.stage}: {c.method}", f"{c.tokens} -> {c.kept}", f"{100 * c.planning_macs:.2f} %",
        f"{100 * c.planning_time:.1f} % ({low:.1f} to {high:.1f})", f"{c.theoretical:.2f}x", f"{c.measured:.2f}x",
        f"{c.efficiency:.2f}",
    )  # fmt: skip


def contender_table(contenders: Sequence[Contender], title: str) -> Table:
    """One row per stage of each recipe."""
    table = Table(*CONTENDER_COLUMNS, title=title)
    for contender in contenders:
        table.add_row(*contender_cells(contender))
    return table


def _speedups(t: StageTiming | PhaseTiming) -> tuple[str, str, str, str]:
    spread = f"{min(t.ratios):.2f} to {max(t.ratios):.2f}"
    return f"{t.theoretical:.2f}x", f"{t.measured:.2f}x", spread, f"{t.efficiency:.2f}"


def _milliseconds(seconds: float) -> str:
    return f"{1000 * seconds:.2f} ms"


def _mebibytes(count: int | None) -> str:
    return "" if count is None else f"{count / 2**20:.0f} MiB"
