"""Locate sites: find the recipe's sites in a block graph, and give the graph its context argument."""

from __future__ import annotations

from sdtm_fx.capture.arguments import Signature
from sdtm_fx.errors import SiteError, nearest
from sdtm_fx.recipe.sections import SiteSpec
from sdtm_fx.rewriting.placeholders import first_placeholder
from sdtm_fx.rewriting.work import BlockWork, Pass
from sdtm_fx.sites.locating import locate


def locate_sites(work: BlockWork) -> int:
    """Find each site of the variant, confirm its structure, and add the context placeholder."""
    work.context = first_placeholder(work.graph, "ctx")
    for place in work.places:
        spec = work.recipe.sites[place.site_index]
        _check_without(work, spec, place.path)
        work.sites[spec.id] = locate(work.graph, work.block, spec, place.local, place.path)
    return len(work.sites)


def _check_without(work: BlockWork, spec: SiteSpec, path: str) -> None:
    """Raise SiteError where the block is given the argument that a site stands without, or has no such argument."""
    if spec.without is None:
        return
    where, block = f"site {spec.id!r} at {path}", type(work.block)
    names = Signature.of(block.forward).names
    if spec.without not in names:
        raise SiteError(
            f"{where}: {block.__name__} has no argument {spec.without!r} for `without`; it has {', '.join(names)}"
            f"{nearest(spec.without, names)}"
        )
    if spec.without in work.given:
        raise SiteError(
            f"{where}: {block.__name__} is given {spec.without!r}; accepted: calls without it, in which image tokens "
            "stand where the recipe says (where lengths of prompts make it: prompts of one length in a call)"
        )


LOCATE_SITES = Pass("locate_sites", exact=True, run=locate_sites)
