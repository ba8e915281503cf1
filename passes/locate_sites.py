"""Locate sites: find the recipe's sites in a block graph, and give the graph its context argument."""

from __future__ import annotations

from sdtm_fx.rewriting.placeholders import first_placeholder
from sdtm_fx.rewriting.work import BlockWork, Pass
from sdtm_fx.sites.locating import locate


def locate_sites(work: BlockWork) -> int:
    """Find each site of the variant, confirm its structure, and add the context placeholder."""
    work.context = first_placeholder(work.graph, "ctx")
    for place in work.places:
        spec = work.recipe.sites[place.site_index]
        work.sites[spec.id] = locate(work.graph, work.block, spec, place.local, place.path)
    return len(work.sites)


LOCATE_SITES = Pass("locate_sites", exact=True, run=locate_sites)
