"""Results of evaluations as a page in Markdown: tables at equal MACs, with what they were measured on."""

from __future__ import annotations

import shlex
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field

from sdtm_fx.evaluate.interval import Estimate
from sdtm_fx.evaluate.report import FORMAT, as_text
from sdtm_fx.markdown import table_lines
from sdtm_fx.records import read_record


class _Read(BaseModel):
    """What is read of the data; the rest of it is left alone."""

    model_config = ConfigDict(extra="ignore", frozen=True)


class Measured(_Read):
    """An estimate with its 95 % interval."""

    mean: float | Literal["inf"]
    low: float | Literal["inf"] | None
    high: float | Literal["inf"] | None
    count: int
    infinite: int = 0

    def text(self, digits: int) -> str:
        """``27.3 [26.1, 28.4]``.

        Args:
            digits: Behind the point.
        """
        mean, low, high = (None if v is None else float(v) for v in (self.mean, self.low, self.high))
        assert mean is not None
        return as_text(Estimate(mean, low, high, self.count, self.infinite), digits)


class Shares(_Read):
    """Shares of the dense MACs."""

    linear: float
    total: float
    speedup: float


class RowData(_Read):
    """A row."""

    label: str
    budget: float | None
    macs: Shares
    psnr: Measured
    ssim: Measured
    accuracy: dict[str, Measured]
    frechet_real: Measured | None
    frechet_dense: Measured | None


class LeftOut(_Read):
    """A row that could not be had."""

    label: str
    reason: str


class Settings(_Read):
    """How it was sampled."""

    model: str
    study: str | None
    recipes: tuple[str, ...] = ()
    only: tuple[str, ...] = ()
    steps: int
    height: int
    width: int
    paired: int
    judged: int
    left_out: tuple[LeftOut, ...] = ()


class Identity(_Read):
    """What it was sampled with."""

    pipeline: str
    dtype: str
    device: str
    threads: int


class Environment(_Read):
    """Where it was sampled."""

    commit: str | None
    python: str
    torch: str
    diffusers: str
    processor: str


class EvaluationData(_Read):
    """The parts of ``evaluation.json`` that a page shows."""

    format: Annotated[int, Field(ge=FORMAT, le=FORMAT)]
    settings: Settings
    identity: Identity
    environment: Environment
    frechet_floor: float | None
    rows: tuple[RowData, ...]


def read_evaluation(path: Path) -> EvaluationData:
    """Read what `sdtm-fx eval` wrote.

    Args:
        path: An ``evaluation.json``.

    Raises:
        SdtmFxError: There is no such file, or it holds something else.
    """
    return read_record(EvaluationData, path, "evaluation.json as `sdtm-fx eval` of this version writes it")


def join_parts(evaluations: Sequence[EvaluationData]) -> list[tuple[EvaluationData, ...]]:
    """Put evaluations together that sampled the same in parts: other rows of one study, drawn one after another.

    Args:
        evaluations: In any order; parts stand where the first of them does.
    """
    groups: dict[object, list[EvaluationData]] = {}
    for number, found in enumerate(evaluations):
        s, on = found.settings, found.environment
        sampled = (s.study, s.model, s.steps, s.height, s.width, s.paired, s.judged, found.identity)
        alike = (*sampled, on.torch, on.diffusers, on.processor) if s.study else number
        groups.setdefault(alike, []).append(found)
    return [tuple(group) for group in groups.values()]


def evaluation_section(*parts: EvaluationData) -> str:
    """The table of an evaluation, or of one that was drawn in parts.

    Args:
        parts: From `join_parts`. A row that several have is shown once, as the first has it.
    """
    return "\n".join(_lines(parts)) + "\n"


def _lines(parts: Sequence[EvaluationData]) -> Iterator[str]:
    first = parts[0]
    s, made, on = first.settings, first.identity, first.environment
    judged = bool(s.judged)
    yield f"## {s.study or s.model}, {s.steps} steps\n"
    commands = ", ".join(
        f"{_command(part.settings)}, commit {part.environment.commit or 'unknown'}" for part in parts
    )
    yield (
        f"{commands}, {on.processor}, torch {on.torch}, diffusers {on.diffusers}, {made.dtype} on {made.device}.\n"
    )
    note = f"PSNR and SSIM to the dense image of the same seed, {s.paired} images a row; 95 % intervals over seeds."
    if judged:
        floor = (
            ""
            if first.frechet_floor is None
            else f" (as large a set of real ones: {first.frechet_floor:.1f})"
        )
        note += (
            f" Captions right and Fréchet distances (FD), to real scenes{floor} and to the dense images, by the judge "
            f"on {s.judged} images of the rows that it saw."
        )
    yield note + "\n"
    columns = ["row", "MACs", "speedup", "PSNR, dB", "SSIM"]
    columns += ["captions right", "FD real", "FD dense"] if judged else []
    rows = {row.label: row for part in reversed(parts) for row in part.rows}
    ordered = [rows[label] for label in dict.fromkeys(row.label for part in parts for row in part.rows)]
    yield from table_lines(columns, (_cells(row, judged) for row in _ranked(ordered)))
    left_out = tuple(dict.fromkeys(row for part in parts for row in part.settings.left_out))
    if left_out:
        yield f"\n<details><summary>{len(left_out)} left out</summary>\n"
        yield from (f"- {row.label}: {row.reason}" for row in left_out)
        yield "\n</details>"


def _command(s: Settings) -> str:
    """What was run."""
    source = [f"--study {s.study}"] if s.study else [f"--model {s.model}"]
    source += [f"--only {shlex.quote(pattern)}" for pattern in s.only] + [f"--recipe {r}" for r in s.recipes]
    return (
        f"`sdtm-fx eval {' '.join(source)} --steps {s.steps} --height {s.height} --width {s.width} --images {s.paired} "
        f"--judge-images {s.judged}`"
    )


def _ranked(rows: Sequence[RowData]) -> list[RowData]:
    """Rows without a budget in their order, then budget by budget, the nearest to dense first."""
    budgets = sorted({row.budget for row in rows if row.budget is not None})
    free = [row for row in rows if row.budget is None]
    tuned = [
        sorted((row for row in rows if row.budget == budget), key=lambda row: -float(row.psnr.mean))
        for budget in budgets
    ]
    return [*free, *(row for group in tuned for row in group)]


def _cells(row: RowData, judged: bool) -> list[str]:
    cells = [
        row.label,
        f"{row.macs.total:.2f}",
        f"{row.macs.speedup:.2f}x",
        row.psnr.text(1),
        row.ssim.text(3),
    ]
    if judged:
        right = row.accuracy.get("all")
        cells.append("" if right is None else right.text(3))
        distances = (row.frechet_real, row.frechet_dense)
        cells += ["" if distance is None else distance.text(1) for distance in distances]
    return cells
