"""Comparisons of recipes as a page in Markdown, with what they were measured on."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from pydantic import BaseModel, ConfigDict

from sdtm_fx.bench.compare import Contender
from sdtm_fx.bench.report import CONTENDER_COLUMNS, contender_cells
from sdtm_fx.markdown import table_lines
from sdtm_fx.records import holds, read_record


class ComparisonData(BaseModel):
    """The parts of a comparison's record that a page shows."""

    model_config = ConfigDict(extra="ignore", frozen=True)

    title: str
    command: str
    commit: str | None
    torch: str
    machine: str
    threads: int
    compared: tuple[Contender, ...]


def holds_comparison(path: Path) -> bool:
    """Whether a file is the record of a comparison."""
    return holds(path, "compared")


def read_comparison(path: Path) -> ComparisonData:
    """Read what ``sdtm-fx bench --compare ... --out`` wrote.

    Args:
        path: The JSON.

    Raises:
        SdtmFxError: There is no such file, or it holds something else.
    """
    return read_record(ComparisonData, path, "what `sdtm-fx bench --compare` of this version writes")


def comparison_section(found: ComparisonData) -> str:
    """The table of a comparison."""
    return "\n".join(_lines(found)) + "\n"


def _lines(found: ComparisonData) -> Iterator[str]:
    runs = min((len(contender.triples) for contender in found.compared), default=0)
    yield f"## {found.title}\n"
    yield (
        f"`{found.command}`, commit {found.commit or 'unknown'}, {found.machine}, {found.threads} threads, torch "
        f"{found.torch}.\n"
    )
    yield (
        "What plans take is told in parts of a dense call: a call that makes its plans less one that keeps them, in "
        f"time the median of {runs} and their spread. Theory is dense MACs over those of a call that makes its "
        "plans; efficiency is measured over theory.\n"
    )
    yield from table_lines(CONTENDER_COLUMNS, map(contender_cells, found.compared))
