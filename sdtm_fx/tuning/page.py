"""Searches as a page in Markdown: what was found beside what it was compared with, and the recipe."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path

from pydantic import BaseModel, ConfigDict

from sdtm_fx.evaluate.interval import mean_interval, paired_differences
from sdtm_fx.evaluate.page import Environment
from sdtm_fx.markdown import table_lines
from sdtm_fx.records import holds, read_record
from sdtm_fx.tuning.writing import UNITS, told


class _Read(BaseModel):
    """What is read of the data; the rest of it is left alone."""

    model_config = ConfigDict(extra="ignore", frozen=True)


class GoalData(_Read):
    """What was searched for."""

    speedup: float
    steps: int
    height: int
    width: int
    quality: str
    images: int
    held_out: int


class FinalistData(_Read):
    """A recipe on held-out images; null stands for infinity."""

    label: str
    family: str
    speedup: float
    held_out: tuple[float | None, ...]

    @property
    def values(self) -> tuple[float, ...]:
        """Quality, image by image."""
        return tuple(float("inf") if value is None else value for value in self.held_out)


class SensitivityData(_Read):
    """What one part gives when it is computed whole."""

    part: str
    gain: float
    share: float
    rate: float


class TuningData(_Read):
    """The parts of a search's record that a page shows."""

    goal: GoalData
    environment: Environment
    command: str
    model: str
    written: str
    chosen_after: float
    seconds: float
    tried: int
    tuned: FinalistData
    rivals: tuple[FinalistData, ...]
    left_out: tuple[str, ...]
    sensitivities: tuple[SensitivityData, ...]


def holds_tuning(path: Path) -> bool:
    """Whether a file is the record of a search."""
    return holds(path, "rivals")


def read_tuning(path: Path) -> TuningData:
    """Read what ``sdtm-fx tune --json`` wrote.

    Args:
        path: The JSON.

    Raises:
        SdtmFxError: There is no such file, or it holds something else.
    """
    return read_record(TuningData, path, "what `sdtm-fx tune --json` of this version writes")


def tuning_section(found: TuningData) -> str:
    """The table of a search, what parts give, and the recipe."""
    return "\n".join(_lines(found)) + "\n"


def _lines(found: TuningData) -> Iterator[str]:
    goal, on = found.goal, found.environment
    unit = UNITS[goal.quality]
    yield f"## {found.model}, {goal.steps} steps, {goal.speedup:g}x\n"
    yield (
        f"`{found.command}`, commit {on.commit or 'unknown'}, {on.processor}, torch {on.torch}, diffusers "
        f"{on.diffusers}: {found.tried} trials on {goal.images} images; the best was chosen after "
        f"{found.chosen_after / 60:.0f} minutes, the comparison done after {found.seconds / 60:.0f}. To the dense "
        f"image of the same seed on {goal.held_out} held-out images of {goal.width} x {goal.height} px, in {unit}, "
        "with 95 % intervals.\n"
    )
    columns = ("recipe", "kind", "speedup by MACs", unit, "tuned is ahead by")
    yield from table_lines(columns, (_cells(one, found.tuned) for one in _ranked(found)))
    if found.left_out:
        yield ""
        yield from (f"- Not compared: {reason}" for reason in found.left_out)
    if found.sensitivities:
        yield "\n<details><summary>What computing a part whole gives, at the best starting point</summary>\n"
        rows = ((s.part, f"{s.gain:+.2f}", f"{s.share:.2%}", f"{s.rate:+.3f}") for s in found.sensitivities)
        yield from table_lines(("part", f"{unit} gained", "of dense MACs", f"{unit} for each percent"), rows)
        yield "\n</details>"
    yield "\n<details><summary>The recipe</summary>\n"
    yield f"```yaml\n{found.written.rstrip()}\n```\n\n</details>"


def _ranked(found: TuningData) -> list[FinalistData]:
    """The tuned recipe, then its rivals, the best first."""
    return [found.tuned, *sorted(found.rivals, key=lambda one: -mean_interval(one.values).mean)]


def _cells(one: FinalistData, tuned: FinalistData) -> Sequence[str]:
    ahead = "" if one is tuned else told(mean_interval(paired_differences(tuned.values, one.values)))
    return one.label, one.family, f"{one.speedup:.2f}x", told(mean_interval(one.values)), ahead
