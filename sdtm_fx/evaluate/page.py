"""Results of evaluations as a page in Markdown: tables at equal MACs, with what they were measured on."""

from __future__ import annotations

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
    steps: int
    height: int
    width: int
    paired: int
    judged: int
    left_out: tuple[LeftOut, ...] = ()


class Identity(_Read):
    """What it was sampled with."""

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


def evaluation_section(found: EvaluationData) -> str:
    """The table of an evaluation."""
    return "\n".join(_lines(found)) + "\n"


def _lines(found: EvaluationData) -> Iterator[str]:
    s, made, on = found.settings, found.identity, found.environment
    judged = bool(s.judged)
    yield f"## {s.study or s.model}, {s.steps} steps\n"
    source = ([f"--study {s.study}"] if s.study else [f"--model {s.model}"]) + [
        f"--recipe {r}" for r in s.recipes
    ]
    yield (
        f"`sdtm-fx eval {' '.join(source)} --steps {s.steps} --height {s.height} --width {s.width} --images {s.paired} "
        f"--judge-images {s.judged}`, commit {on.commit or 'unknown'}, {on.processor}, torch {on.torch}, diffusers "
        f"{on.diffusers}, {made.dtype} on {made.device}.\n"
    )
    note = f"PSNR and SSIM to the dense image of the same seed, {s.paired} images a row; 95 % intervals over seeds."
    if judged:
        floor = (
            ""
            if found.frechet_floor is None
            else f" (as large a set of real ones: {found.frechet_floor:.1f})"
        )
        note += (
            f" Captions right and Fréchet distances (FD), to real scenes{floor} and to the dense images, by the judge "
            f"on {s.judged} images of the rows that it saw."
        )
    yield note + "\n"
    columns = ["row", "MACs", "speedup", "PSNR, dB", "SSIM"]
    columns += ["captions right", "FD real", "FD dense"] if judged else []
    yield from table_lines(columns, (_cells(row, judged) for row in _ranked(found.rows)))
    if s.left_out:
        yield f"\n<details><summary>{len(s.left_out)} left out</summary>\n"
        yield from (f"- {row.label}: {row.reason}" for row in s.left_out)
        yield "\n</details>"


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
