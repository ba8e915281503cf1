"""Studies: the rows of a comparison as strict YAML, and the rows that a pipeline can be evaluated with."""

from __future__ import annotations

import fnmatch
import importlib.resources
import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from sdtm_fx.errors import RecipeError, SdtmFxError, nearest
from sdtm_fx.evaluate.row import Row
from sdtm_fx.evaluate.study_rows import RowMaker, Skipped
from sdtm_fx.evaluate.study_spec import RowSpec, StudySpec
from sdtm_fx.recipe.extend import SUFFIXES
from sdtm_fx.recipe.load import load_recipe
from sdtm_fx.recipe.schema import Recipe
from sdtm_fx.recipe.validate import validate
from sdtm_fx.recipe.yaml_source import Source, read_yaml
from sdtm_fx.toy.scenes import sample_scene

logger = logging.getLogger(__name__)

_FOLDER = "studies"
_CALIBRATION = 2  # images that a threshold is found with


class StudyError(SdtmFxError):
    """A study is not readable or not valid. The text starts with file, line and key path."""


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

    def only(self, patterns: Sequence[str]) -> Study:
        """The study with some of its rows, and the dense one.

        Args:
            patterns: Labels, with ``*`` and ``?`` for what they leave open, as the study has them: without budgets.

        Raises:
            StudyError: A pattern names no row.
        """
        labels = [row.label for row in self.spec.rows]
        for pattern in patterns:
            if not any(fnmatch.fnmatchcase(label, pattern) for label in labels):
                raise StudyError(
                    f"{self.spec.name}: found no row {pattern!r}{nearest(pattern, labels)}; accepted: "
                    f"{', '.join(labels)}"
                )
        kept = [
            row
            for row in self.spec.rows
            if (row.recipe is None and row.hook is None)
            or any(fnmatch.fnmatchcase(row.label, p) for p in patterns)
        ]
        return replace(self, spec=self.spec.model_copy(update={"rows": tuple(kept)}))

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
        maker = RowMaker(
            self.recipe,
            self.spec.budgets,
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
