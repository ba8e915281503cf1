"""What a recipe would merge of the sites that were found."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from sdtm_fx.errors import RewriteError
from sdtm_fx.inspecting.groups import SiteGroup
from sdtm_fx.inspecting.survey import Survey
from sdtm_fx.recipe.schema import Recipe
from sdtm_fx.rewriting.span_ends import covering_stages
from sdtm_fx.sites.matching import match_sites


@dataclass(frozen=True)
class Marks:
    """The sites of a recipe beside those that were found.

    Attributes:
        recipe: Its name.
        stages: Stages that merge a module, by its path.
        named: Paths that the recipe names but merges in no stage.
        unknown: Paths that it names and that were not found to be sites.
    """

    recipe: str
    stages: dict[str, tuple[str, ...]]
    named: frozenset[str]
    unknown: tuple[str, ...]

    def of(self, group: SiteGroup) -> str:
        """What the recipe does with sites, in words."""
        merged = [self.stages[s.path] for s in group.sites if s.path in self.stages]
        if merged:
            some = "" if len(merged) == len(group.sites) else f"{len(merged)} of {len(group.sites)}: "
            return f"{some}merged in {', '.join(dict.fromkeys(name for names in merged for name in names))}"
        return "named, never merged" if any(s.path in self.named for s in group.sites) else "not named"

    def says(self) -> str:
        """The rest in words."""
        lost = f"; not found to be sites: {', '.join(self.unknown)}" if self.unknown else ""
        return f"recipe {self.recipe} merges {len(self.stages)} modules{lost}"

    def as_data(self) -> dict[str, Any]:
        """The marks as plain data."""
        return {"name": self.recipe, "merged": sorted(self.stages), "unknown": list(self.unknown)}


def mark(survey: Survey, recipe: Recipe) -> Marks:
    """Match the sites of a recipe in the model of a survey.

    Raises:
        RewriteError: The recipe is for other models.
        NothingMatched: One of its sites matches no module, or another number than it expects.
    """
    if survey.subject.name not in recipe.model:
        raise RewriteError(
            f"recipe {recipe.name!r} is for {', '.join(recipe.model)}, this model is a {survey.subject.name}"
        )
    stages: dict[str, tuple[str, ...]] = {}
    named: list[str] = []
    modules = match_sites(survey.model, recipe.sites)
    covered = covering_stages(recipe, list(dict.fromkeys(module.block for module in modules)))
    for module in modules:
        by_itself = (stage.name for stage in recipe.stages if module.spec.id in stage.sites)
        used = (*by_itself, *covered.get(module.block, ()))
        named.append(module.path)
        if used:
            stages[module.path] = used
    found = {site.path for site in survey.sites}
    return Marks(recipe.name, stages, frozenset(named), tuple(path for path in named if path not in found))
