"""Sites that a recipe would name by one pattern: alike in all but their block."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from sdtm_fx.cost.counter import Macs
from sdtm_fx.inspecting.patterns import family, pattern_for
from sdtm_fx.inspecting.survey import FoundSite, LeftOut, Survey


@dataclass(frozen=True)
class SiteGroup:
    """Sites of one pattern.

    Attributes:
        pattern: What matches them and no other module.
        sites: They, in the order of execution.
        level: Side of their tokens over that of the finest grid.
        macs: Of all of them, at the size of the survey.
    """

    pattern: str
    sites: tuple[FoundSite, ...]
    level: int
    macs: Macs

    @property
    def first(self) -> FoundSite:
        """The first of them."""
        return self.sites[0]


def group_sites(survey: Survey) -> tuple[SiteGroup, ...]:
    """Group the sites of a survey; the several lists of one level of a U-Net make one group."""
    groups: dict[tuple[object, ...], list[FoundSite]] = {}
    levels = {survey.level(site) for site in survey.sites}
    for site in survey.sites:
        # On several grids, what lies in other lists but is called alike is one site of the recipe.
        name = site.path.rpartition(".")[2] if len(levels) > 1 else family(site.path)
        key = (
            name, site.kind, site.tokens, site.order, site.input, site.output, site.beside, site.rotary, site.positions,
            site.call,
        )  # fmt: skip
        groups.setdefault(key, []).append(site)
    every = [path for path, _ in survey.model.named_modules() if path]
    return tuple(
        SiteGroup(
            pattern_for([s.path for s in sites], every),
            tuple(sites),
            survey.level(sites[0]),
            sum((survey.macs[s.path] for s in sites), Macs()),
        )
        for sites in groups.values()
    )


def group_left_out(left_out: Sequence[LeftOut]) -> dict[tuple[str, str, str], list[str]]:
    """Paths by what they have in common: family, kind and reason."""
    groups: dict[tuple[str, str, str], list[str]] = {}
    for module in left_out:
        groups.setdefault((family(module.path), module.kind, module.why), []).append(module.path)
    return groups
