"""Studies: the rows of a comparison as strict YAML, and the rows that a pipeline can be evaluated with."""

from __future__ import annotations

import importlib.resources
import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from sdtm_fx.errors import RecipeError, SdtmFxError, nearest
from sdtm_fx.evaluate.budget import (
    TOLERANCE,
    BudgetError,
    Knob,
    Match,
    sampled_speedup,
    solve,
    solve_threshold,
)
from sdtm_fx.evaluate.hook import HookedRow, TaylorSeer, match_hook
from sdtm_fx.evaluate.row import Row
from sdtm_fx.evaluate.schedule_costs import Costs, measure_costs, probe_size
from sdtm_fx.evaluate.study_spec import RowSpec, StudySpec
from sdtm_fx.recipe.extend import SUFFIXES
from sdtm_fx.recipe.load import load_recipe
from sdtm_fx.recipe.ratio import ThresholdRatio
from sdtm_fx.recipe.schema import Recipe
from sdtm_fx.recipe.validate import validate
from sdtm_fx.recipe.yaml_source import Source, read_yaml
from sdtm_fx.runtime.schedules import CallSize
from sdtm_fx.toy.scenes import sample_scene

logger = logging.getLogger(__name__)

_FOLDER = "studies"
_CALIBRATION = 2  # images that a threshold is found with


class StudyError(SdtmFxError):
    """A study is not readable or not valid. The text starts with file, line and key path."""


@dataclass(frozen=True)
class Skipped:
    """A row that cannot be had at this number of steps or size."""

    label: str
    reason: str


@dataclass(frozen=True)
class Planned:
    """What a study comes to for one pipeline.

    Attributes:
        rows: Rows to evaluate, their labels all different.
        skipped: Rows that are left out.
    """

    rows: tuple[Row, ...]
    skipped: tuple[Skipped, ...]


@dataclass(frozen=True)
class Study:
    """A comparison: a model, how it is sampled, and the rows. Read one with `load_study`.

    Attributes:
        spec: What is written.
        folder: Where relative paths of recipes start; None where it is in no folder.
    """

    spec: StudySpec
    folder: Path | None = None

    def rows(self, pipeline: Any, **settings: Any) -> tuple[Row, ...]:
        """Return the rows of `plan`; what is left out is logged as a warning."""
        return self.plan(pipeline, **settings).rows

    def plan(
        self,
        pipeline: Any,
        *,
        steps: int | None = None,
        height: int | None = None,
        width: int | None = None,
        guidance_scale: float | None = None,
        prompts: Sequence[str] = (),
        on_row: Callable[[str], None] = lambda label: None,
    ) -> Planned:
        """Turn the study into rows for one pipeline and number of steps, solving every knob.

        Args:
            pipeline: The pipeline, dense.
            steps: Denoising steps; None takes the study's default, as for height and width.
            height: Pixels.
            width: Pixels.
            guidance_scale: Of the pipeline; None takes its default.
            prompts: What thresholds are calibrated with, one image each; by default captions of toy scenes.
            on_row: Called with the label of each row of the study before it is worked out.

        Returns:
            The rows, and what was left out and why.

        Raises:
            SdtmFxError: A recipe does not fit the pipeline.
        """
        default = self.spec.defaults
        maker = _Maker(
            self,
            pipeline,
            steps or default.steps,
            height or default.height,
            width or default.width,
            guidance_scale,
            tuple(prompts) or _captions(),
        )
        for row in self.spec.rows:
            on_row(row.label)
            maker.add(row)
        for skipped in maker.skipped:
            logger.warning("%s: row %r is left out: %s", self.spec.name, skipped.label, skipped.reason)
        return Planned(tuple(maker.rows), tuple(maker.skipped))

    def recipe(self, row: RowSpec) -> Recipe:
        """The recipe of a row, before any knob is turned.

        Args:
            row: A row with a recipe.

        Raises:
            RecipeError: There is no such recipe, or an override does not fit it.
        """
        assert row.recipe is not None
        is_path = self.folder is not None and row.recipe.endswith(SUFFIXES)
        source = str(self.folder / row.recipe) if self.folder is not None and is_path else row.recipe
        return load_recipe(source).override({**self.spec.overrides, **row.overrides})


@dataclass
class _Maker:
    """Works out row after row.

    Attributes:
        rows: The rows so far.
        skipped: What was left out so far.
    """

    study: Study
    pipeline: Any
    steps: int
    height: int
    width: int
    guidance_scale: float | None
    prompts: tuple[str, ...]
    rows: list[Row] = field(default_factory=list)
    skipped: list[Skipped] = field(default_factory=list)
    _measure: Callable[[Recipe], float] | None = None
    _sizes: dict[tuple[str, ...], CallSize] = field(default_factory=dict)
    _costs: dict[str, Costs] = field(default_factory=dict)
    _seen: dict[str, str] = field(default_factory=dict)

    def add(self, spec: RowSpec) -> None:
        most = spec.steps.most or self.steps
        if not spec.steps.least <= self.steps <= most:
            wanted = (
                f"{spec.steps.least} steps or more" if spec.steps.most is None else f"at most {most} steps"
            )
            reason = f"it is for {wanted}, not {self.steps}"
            self.skipped.append(
                Skipped(spec.label, f"{reason}: {spec.why_steps}" if spec.why_steps else reason)
            )
            return
        recipe = None if spec.recipe is None else self.study.recipe(spec)
        if spec.knob is None:
            self._keep(spec, spec.label, recipe, spec.hook, None)
            return
        for budget in spec.budgets or self.study.spec.budgets:
            label = f"{spec.label}, {budget:g}x"
            try:
                self._add_tuned(spec, recipe, budget)
            except BudgetError as error:
                self.skipped.append(Skipped(label, str(error)))

    def _add_tuned(self, spec: RowSpec, recipe: Recipe | None, budget: float) -> None:
        if spec.hook is not None:
            hook, speedup = match_hook(
                spec.hook,
                self.pipeline,
                speedup=budget,
                steps=self.steps,
                height=self.height,
                width=self.width,
            )
            self._keep(spec, _tuned_label(spec, budget, speedup), None, hook, budget)
            return
        assert recipe is not None
        match = self._match(recipe, spec.knob, budget)
        self._keep(spec, _tuned_label(spec, budget, match.speedup), match.recipe, None, budget)

    def _match(self, recipe: Recipe, knob: Knob | None, budget: float) -> Match:
        size = self._size(recipe)
        if knob == "threshold":
            self._measure = self._measure or sampled_speedup(
                self.pipeline, self.prompts, size, self.height, self.width, self.guidance_scale
            )
            return solve_threshold(recipe, self._measure, speedup=budget)
        assert knob is not None
        key = _cost_key(recipe)
        if key not in self._costs:
            self._costs[key] = measure_costs(recipe, self.pipeline, size)
        return solve(recipe, self._costs[key], knob=knob, speedup=budget)

    def _size(self, recipe: Recipe) -> CallSize:
        """The size of the calls, which all recipes of one model share."""
        if recipe.model not in self._sizes:
            self._sizes[recipe.model] = probe_size(
                self.pipeline,
                recipe,
                steps=self.steps,
                height=self.height,
                width=self.width,
                guidance_scale=self.guidance_scale,
            )
        return self._sizes[recipe.model]

    def _keep(
        self, spec: RowSpec, label: str, recipe: Recipe | None, hook: TaylorSeer | None, budget: float | None
    ) -> None:
        drawn = (
            recipe.fingerprint()
            if recipe is not None
            else hook.fingerprint()
            if hook is not None
            else "dense"
        )
        if drawn in self._seen:
            reason = f"at {self.steps} steps it is the same as {self._seen[drawn]!r}"
            wanted = spec.label if budget is None else f"{spec.label}, {budget:g}x"
            self.skipped.append(Skipped(wanted, reason))
            return
        self._seen[drawn] = label
        row = Row(label, spec.method, recipe, budget)
        self.rows.append(row if hook is None else HookedRow(label, spec.method, None, budget, hook))


def _tuned_label(spec: RowSpec, budget: float, speedup: float) -> str:
    """The budget where it is met, and what is reached where it is not."""
    close = abs(speedup / budget - 1) <= TOLERANCE
    return f"{spec.label}, {budget:g}x" if close else f"{spec.label}, {budget:g}x wanted, {speedup:.2f}x"


def _cost_key(recipe: Recipe) -> str:
    """Equal for recipes that differ in ratios and dense steps only, so that one measurement serves them."""
    neutral: dict[str, Any] = {"name": "same", "description": "", "keep_dense.every_steps": 2}
    threshold = isinstance(recipe.ratio, ThresholdRatio)
    stages = {stage.name: {"ratio": None} for stage in recipe.stages}
    if not threshold:
        neutral["ratio"] = {"curve": "constant", "start": 0.0}
    return recipe.override(neutral, stages=stages).fingerprint()


def _captions() -> tuple[str, ...]:
    return tuple(sample_scene(-1 - index).caption for index in range(_CALIBRATION))


def list_studies() -> tuple[str, ...]:
    """Return the names of the shipped studies, sorted."""
    return tuple(sorted(_shipped()))


def load_study(source: str | Path) -> Study:
    """Read a study, and check that each of its recipes can be built.

    Args:
        source: The name of a shipped study, or a path that ends in .yaml.

    Raises:
        StudyError: There is no such study, or it is not valid; the text says in which file, line and key.
    """
    text, label, folder = _read(source)
    try:
        read = read_yaml(text, label)
        study = Study(validate(StudySpec, read), folder)
    except RecipeError as error:
        raise StudyError(str(error)) from error
    for index, row in enumerate(study.spec.rows):
        _try_recipe(study, row, index, read)
    return study


def _try_recipe(study: Study, row: RowSpec, index: int, read: Source) -> None:
    if row.recipe is None:
        return
    try:
        study.recipe(row)
    except RecipeError as error:
        raise StudyError(f"{read.where(('rows', index))}: rows[{index}] {row.label!r}: {error}") from error


def _read(source: str | Path) -> tuple[str, str, Path | None]:
    """Text, label and folder of a study."""
    shipped = _shipped()
    if isinstance(source, str) and source in shipped:
        return shipped[source], f"{_FOLDER}/{source}.yaml", None
    path = Path(source)
    if path.suffix not in SUFFIXES:
        raise StudyError(
            f"found the study name {str(source)!r}; accepted {', '.join(sorted(shipped))}, or a path that ends in "
            f".yaml{nearest(str(source), shipped)}"
        )
    try:
        return path.read_text(encoding="utf-8-sig"), str(path), path.parent
    except (OSError, UnicodeDecodeError) as error:
        reason = getattr(error, "strerror", None) or error
        raise StudyError(
            f"{path}: found no readable file ({reason}); accepted a study in YAML, UTF-8"
        ) from error


def _shipped() -> dict[str, str]:
    folder = importlib.resources.files("sdtm_fx.evaluate").joinpath(_FOLDER)
    files = [entry for entry in folder.iterdir() if entry.name.endswith(".yaml")]
    return {entry.name.removesuffix(".yaml"): entry.read_text(encoding="utf-8") for entry in files}
