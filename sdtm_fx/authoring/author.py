"""`author`: from a survey to a recipe on disk, with what trying it out showed."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from sdtm_fx.authoring.running import Check
from sdtm_fx.authoring.sites import draft_sites
from sdtm_fx.authoring.trial import try_draft
from sdtm_fx.authoring.write import write_draft
from sdtm_fx.errors import InspectionError
from sdtm_fx.inspecting.groups import group_sites
from sdtm_fx.inspecting.survey import Survey


@dataclass(frozen=True)
class Draft:
    """A recipe that was drafted.

    Attributes:
        path: Where it is.
        text: What it says.
        checks: What was tried, in order.
    """

    path: Path
    text: str
    checks: tuple[Check, ...]

    @property
    def passed(self) -> bool:
        """Whether everything that was tried went well."""
        return all(check.passed for check in self.checks)

    @property
    def unsure(self) -> list[str]:
        """What it had to guess, with the lines."""
        lines = enumerate(self.text.splitlines(), start=1)
        return [
            f"line {number}: {text.partition('# unsure: ')[2]}"
            for number, text in lines
            if "# unsure: " in text
        ]


def author(survey: Survey, path: Path, *, name: str | None = None, layers: int = 2) -> Draft:
    """Draft a recipe, write it, and try it out on a smaller copy of the model.

    Args:
        survey: What was found.
        path: Where to write; overwritten.
        name: Of the recipe; by default as the file is called.
        layers: Most layers of each kind in the copy.

    Raises:
        InspectionError: The file does not end in .yaml.
    """
    if path.suffix != ".yaml":
        raise InspectionError(f"{path}: a recipe is a file that ends in .yaml")
    text = write_draft(survey, draft_sites(group_sites(survey)), name or path.stem)
    path.write_text(text, encoding="utf-8")
    return Draft(path, text, tuple(try_draft(path, survey, layers)))
