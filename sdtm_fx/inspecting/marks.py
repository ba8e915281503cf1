"""What a recipe would do with the sites that were found: merge them, or forecast them."""

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
        stages: Stages that merge or forecast a module, by its path.
        forecasts: Which of the stages forecast.
        named: Paths that the recipe names.
        unknown: Paths that it names and that were not found to be sites.
    """

    recipe: str
    stages: dict[str, tuple[str, ...]]
    forecasts: frozenset[str]
    named: frozenset[str]
    unknown: tuple[str, ...]

    def of(self, group: SiteGroup) -> str:
        """What the recipe does with sites, in words."""
        used = [self.stages[s.path] for s in group.sites if s.path in self.stages]
        if not used:
            return "named, never used" if any(s.path in self.named for s in group.sites) else "not named"
        names = [*dict.fromkeys(name for names in used for name in names)]
        told = [
            f"{verb} in {', '.join(those)}"
            for verb, those in (
                ("merged", [name for name in names if name not in self.forecasts]),
                ("forecast", [name for name in names if name in self.forecasts]),
            )
            if those
        ]
        some = "" if len(used) == len(group.sites) else f"{len(used)} of {len(group.sites)}: "
        return f"{some}{'; '.join(told)}"

    def says(self) -> str:
        """The rest in words."""
        told = [f"{verb} {len(paths)}" for verb, paths in self._counted().items() if paths]
        lost = f"; not found to be sites: {', '.join(self.unknown)}" if self.unknown else ""
        return f"recipe {self.recipe} {' modules, and '.join(told) or 'uses 0'} modules{lost}"

    def as_data(self) -> dict[str, Any]:
        """The marks as plain data."""
        counted = self._counted()
        return {
            "name": self.recipe,
            "merged": counted["merges"],
            "forecast": counted["forecasts"],
            "unknown": list(self.unknown),
        }

    def _counted(self) -> dict[str, list[str]]:
        """Paths that are merged in some stage, and those that are forecast in some."""
        return {
            "merges": sorted(path for path, names in self.stages.items() if {*names} - self.forecasts),
            "forecasts": sorted(path for path, names in self.stages.items() if {*names} & self.forecasts),
        }


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
    forecasts = frozenset(stage.name for stage in recipe.stages if not stage.method.merges)
    return Marks(
        recipe.name, stages, forecasts, frozenset(named), tuple(path for path in named if path not in found)
    )
