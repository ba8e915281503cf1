"""The page of the demonstration: one HTML file that needs nothing else."""

from __future__ import annotations

import importlib.resources
import math
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import median

from jinja2 import Environment, StrictUndefined
from torch import Tensor

from sdtm_fx.demo.compare import Comparison, Film, Outcome
from sdtm_fx.demo.pictures import data_uri, difference, merged_share, shaded, shades
from sdtm_fx.demo.report import environment
from sdtm_fx.demo.slots import MergeMap, merge_map
from sdtm_fx.explaining.plan_record import PlanRecord, SiteRecord
from sdtm_fx.grids import TokenGrid


@dataclass(frozen=True)
class Bar:
    """MACs of one step.

    Attributes:
        step: The step.
        share: Of the dense MACs, all of them.
        tone: Name of the colour.
        stage: Name of the stage, ``dense``, or ``dense, stored``.
        ratio: Share of the image tokens that is removed.
    """

    step: int
    share: float
    tone: str
    stage: str
    ratio: float

    @property
    def label(self) -> str:
        """What the step did, in words."""
        return _label(self.stage, [self.ratio])

    @property
    def height(self) -> float:
        """The share as a height, which cannot be negative."""
        return max(0.0, self.share)


@dataclass(frozen=True)
class Frame:
    """One step of a film, or one block of it.

    Attributes:
        title: Which one.
        note: What happened, in words.
        tone: Name of the colour.
        image: Address of what the step predicted the image to be.
        grid: (height, width) in tokens.
        map: What merged, None where nothing did.
    """

    title: str
    note: str
    tone: str
    image: str
    grid: TokenGrid
    map: MergeMap | None


@dataclass(frozen=True)
class Cell:
    """One image of the gallery, with its distance to the dense one and the map of what merged."""

    image: str
    psnr: str
    difference: str
    merged: str | None
    merged_mean: str


@dataclass(frozen=True)
class Strip:
    """The frames of one pipeline on one prompt: every step of one block, and every block of two steps."""

    recipe: str
    caption: str
    block: str
    frames: tuple[Frame, ...]
    blocks: tuple[tuple[int, tuple[Frame, ...]], ...]


def render_page(comparisons: Sequence[Comparison]) -> str:
    """The page as text.

    Args:
        comparisons: One section each; those whose films exist show images and maps.
    """
    files = importlib.resources.files("sdtm_fx.demo")
    text = {
        name: files.joinpath(name).read_text(encoding="utf-8")
        for name in ("page.html.j2", "page.css", "page.js")
    }
    engine = Environment(autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True)
    engine.filters["db"] = _db
    engine.filters["legend"] = _legend
    template = engine.from_string(text["page.html.j2"])
    return template.render(
        sections=comparisons,
        gallery=gallery,
        bars=bars,
        highest=highest,
        strips=strips,
        numbers=numbers,
        shades=shades(),
        environment=environment(),
        style=text["page.css"],
        script=text["page.js"],
    )


def numbers(comparison: Comparison) -> list[list[str]]:
    """The rows of the table: one per pipeline, the dense one first."""
    first = comparison.outcomes[0].explanation
    rows = [
        ["dense", f"{first.dense.linear / 1e9:.3g} G", f"{first.dense.total / 1e9:.3g} G", "1.00x", "", "", "",
         f"{median(comparison.seconds):.2f} s", "1.00x", ""]
    ]  # fmt: skip
    for outcome in comparison.outcomes:
        e = outcome.explanation
        rows.append(
            [
                outcome.recipe,
                f"{e.mean.linear / e.dense.linear:.2f}",
                f"{e.mean.total / e.dense.total:.2f}",
                f"{e.theoretical_speedup:.2f}x",
                _db(outcome.mean_psnr),
                _db(min(outcome.psnr)),
                f"{sum(e.state_bytes.values()) / 2**20:.1f} MiB",
                f"{median(outcome.seconds):.2f} s",
                f"{comparison.speedup(outcome):.2f}x",
                "yes" if outcome.restored else "NO",
            ]
        )
    return rows


def bars(outcome: Outcome) -> list[Bar]:
    """MACs of every step of a rewritten pipeline, as shares of a dense step."""
    e = outcome.explanation
    found: list[Bar] = []
    stages = list(dict.fromkeys(_stage(p.label) for p in e.phases if p.removed))
    last = max((step for p in e.phases if p.removed for step in p.steps), default=-1)
    for phase in e.phases:
        for step in phase.steps:
            stage, tone = _stage(phase.label), "dense"
            if phase.removed:
                tone = f"stage{stages.index(stage) % 2}"
            elif phase.stores and step < last:  # later on, nothing reads what would be stored
                stage, tone = "dense, stored", "refresh"
            found.append(Bar(step, phase.macs.total / e.dense.total, tone, stage, phase.ratio))
    return sorted(found, key=lambda bar: bar.step)


def highest(comparison: Comparison) -> float:
    """The costliest step of all pipelines, at least a dense one: charts beside each other have one scale."""
    return max(1.0, *(bar.height for outcome in comparison.outcomes for bar in bars(outcome)))


def gallery(comparison: Comparison) -> list[tuple[str, str, list[Cell]]]:
    """Per case: the caption, the dense image, and one cell per rewritten pipeline."""
    rows = []
    for case, caption in enumerate(comparison.task.captions):
        dense = comparison.images[case]
        cells = [_cell(outcome, case, dense) for outcome in comparison.outcomes]
        rows.append((caption, data_uri(dense), cells))
    return rows


def strips(comparison: Comparison) -> list[Strip]:
    """The films of the first case, as frames."""
    caption = comparison.task.captions[0]
    return [_strip(outcome, outcome.films[0], caption) for outcome in comparison.outcomes if outcome.films]


def _cell(outcome: Outcome, case: int, dense: Tensor) -> Cell:
    image = outcome.images[case]
    merged, mean = None, ""
    if outcome.films:
        share = merged_share(outcome.films[case])
        merged, mean = data_uri(shaded(share)), f"{float(share.mean()):.0%}"
    return Cell(data_uri(image), _db(outcome.psnr[case]), data_uri(difference(image, dense)), merged, mean)


def _strip(outcome: Outcome, film: Film, caption: str) -> Strip:
    tones = {bar.step: bar.tone for bar in bars(outcome)}
    blocks = list(dict.fromkeys(site.block for site in film.record))
    middle = blocks[len(blocks) // 2]
    images = [data_uri(p) for p in film.predictions]

    def frame(title: str, step: int, block: str) -> Frame:
        sites = film.record.at(step=step, block=block)
        shown = next((s for s in sites if s.assign is not None), None)
        drawn = None if shown is None else merge_map(shown, film.predictions[step])
        return Frame(title, _note(sites), tones[step], images[step], sites[0].grid, drawn)

    steps = tuple(frame(f"step {step}", step, middle) for step in range(len(images)))
    chosen = _first_step_of_each_stage(film.record)
    every = tuple((step, tuple(frame(block, step, block) for block in blocks)) for step in chosen)
    return Strip(outcome.recipe, caption, middle, steps, every)


def _first_step_of_each_stage(record: PlanRecord) -> list[int]:
    """In the middle of each stage, a step that merges."""
    steps: dict[str, list[int]] = {}
    for site in record:
        if site.assign is None or site.stage is None:
            continue
        if site.step not in steps.setdefault(site.stage, []):
            steps[site.stage].append(site.step)
    return [merged[len(merged) // 2] for merged in steps.values()]


def _note(sites: Sequence[SiteRecord]) -> str:
    merged = [s for s in sites if s.assign is not None]
    if not merged:
        return {"refresh": "dense, stored", "forecast": "forecast"}.get(sites[0].action, "dense")
    only = "" if len(merged) == len(sites) else f", {' and '.join(s.site for s in merged)} only"
    return f"{merged[0].stage}: {merged[0].tokens} → {merged[0].kept}{only}"


def _legend(found: Sequence[Bar]) -> list[tuple[str, str]]:
    """(label, tone) of every kind of step."""
    kinds = dict.fromkeys((bar.stage, bar.tone) for bar in found)
    return [(_label(stage, [b.ratio for b in found if b.stage == stage]), tone) for stage, tone in kinds]


def _label(stage: str, ratios: Sequence[float]) -> str:
    least, most = min(ratios), max(ratios)
    if most == 0:
        return stage
    if least == 1:
        return f"{stage}: all forecast"
    return f"{stage}: {least:.0%} removed" if least == most else f"{stage}: {least:.0%} to {most:.0%} removed"


def _stage(label: str) -> str:
    return label.removesuffix(", plan kept")


def _db(value: float) -> str:
    return "equal" if math.isinf(value) else f"{value:.1f} dB"
