"""The study language, version 1: rows of a comparison as strictly typed data."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, Literal

from pydantic import Field, model_validator
from pydantic_core import PydanticCustomError

from sdtm_fx.evaluate.hook import TaylorSeer
from sdtm_fx.evaluate.match import Knob
from sdtm_fx.recipe.part import Count, Part, Positive, RecipeName, Text
from sdtm_fx.recipe.problems import Problem, misfit

Speedup = Annotated[float, Field(gt=1)]


class Defaults(Part):
    """How the study is sampled, unless the command says otherwise."""

    steps: Positive = 28
    """Denoising steps."""
    height: Positive = 64
    """Pixels."""
    width: Positive = 64
    """Pixels."""
    images: Positive = 64
    """Images that are compared with the dense image of their seed."""
    judged: Count = 0
    """Images that the judge sees of the rows that it judges."""


class StepRange(Part):
    """The numbers of denoising steps that a row is for."""

    least: Positive = 1
    """From this many."""
    most: Positive | None = None
    """To this many; absent: any."""


class RowSpec(Part):
    """A row, or one row for each of its budgets. Without recipe and hook it is the dense model."""

    label: Text
    """Name of the row; with a budget, that is added."""
    method: Text
    """Name of the curve that the row is a point of."""
    recipe: Text | None = None
    """Name of a shipped recipe, or a path that ends in .yaml, relative to the study."""
    overrides: Mapping[str, Any] = Field(default_factory=dict)
    """Changes to the recipe, on top of those of the study: dotted key paths and values."""
    hook: TaylorSeer | None = None
    """A hook of diffusers in place of a recipe."""
    knob: Knob | None = None
    """What is turned until the row costs its budget; hooks know ``interval`` only."""
    budgets: Annotated[tuple[Speedup, ...], Field(min_length=1)] | None = None
    """Speedups by total MACs; absent: those of the study."""
    judged: bool | Annotated[tuple[Speedup, ...], Field(min_length=1)] = True
    """Whether the judge sees the row, which takes many more images than comparing it with dense ones; of a row
    with a knob, those budgets for which it does."""
    steps: StepRange = StepRange()
    """Where the row makes sense; elsewhere it is left out, and that is said."""
    why_steps: str = ""
    """Why it makes no sense elsewhere."""


class StudySpec(Part):
    """A study as it is written."""

    version: Literal[1]
    """Version of the study language."""
    name: RecipeName
    """Name of the study."""
    description: str = ""
    """What it asks."""
    model: Text
    """Model that it is for, as ``sdtm-fx eval --model`` takes it."""
    defaults: Defaults = Defaults()
    """How it is sampled."""
    overrides: Mapping[str, Any] = Field(default_factory=dict)
    """Changes to every recipe: dotted key paths and values."""
    budgets: tuple[Speedup, ...] = ()
    """Speedups by total MACs that rows with a knob are tuned to."""
    rows: Annotated[tuple[RowSpec, ...], Field(min_length=1)]
    """The rows."""

    @model_validator(mode="after")
    def _check(self) -> StudySpec:
        problems = [
            *self._labels(),
            *(p for i, row in enumerate(self.rows) for p in self._contradictions(i, row)),
        ]
        if problems:
            raise PydanticCustomError("recipe", "; ".join(map(str, problems)), {"problems": tuple(problems)})
        return self

    def _labels(self) -> list[Problem]:
        labels = [row.label for row in self.rows]
        return [
            misfit(("rows", i, "label"), f"{label!r} a second time", "a different label for each")
            for i, label in enumerate(labels)
            if label in labels[:i]
        ]

    def _contradictions(self, index: int, row: RowSpec) -> list[Problem]:
        problems = []

        def wrong(key: str, found: str, accepted: str) -> None:
            problems.append(misfit(("rows", index, key), found, accepted))

        if row.recipe is not None and row.hook is not None:
            wrong("hook", "a hook beside a recipe", "one of them")
        if row.overrides and row.recipe is None:
            wrong("overrides", "overrides without a recipe", "a recipe beside them")
        if row.knob is not None and row.recipe is None and row.hook is None:
            wrong("knob", "a knob of the dense model", "a knob beside a recipe or a hook")
        if row.hook is not None and row.knob not in (None, "interval"):
            wrong("knob", f"{row.knob!r} beside a hook", "'interval'")
        if row.budgets is not None and row.knob is None:
            wrong("budgets", "budgets without a knob", "a knob beside them")
        if row.knob is not None and row.budgets is None and not self.budgets:
            wrong("knob", "a knob without budgets", "budgets, here or for the whole study")
        if not isinstance(row.judged, bool):
            stray = [b for b in row.judged if b not in (row.budgets or self.budgets)]
            if row.knob is None:
                wanted = "true or false in a row without a knob"
                wrong("judged", "budgets without a knob", wanted)
            elif stray:
                accepted = ", ".join(f"{b:g}" for b in row.budgets or self.budgets)
                wrong("judged", f"{stray[0]:g}, which is none of the row's budgets", f"some of {accepted}")
        if row.steps.most is not None and row.steps.most < row.steps.least:
            wrong("steps", f"{row.steps.least} to {row.steps.most}", "least at most as large as most")
        return problems
