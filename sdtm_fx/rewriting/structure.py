"""What tells blocks of equal graphs apart, and what a block must be for its sites."""

from __future__ import annotations

import torch

from sdtm_fx.capture.hooked import traits
from sdtm_fx.capture.tracer import Capture
from sdtm_fx.errors import SiteError
from sdtm_fx.recipe.schema import Recipe
from sdtm_fx.rewriting.attention import attention_text, has_attention
from sdtm_fx.rewriting.work import SitePlace


def leaf_traits(block: torch.nn.Module, capture: Capture) -> tuple[tuple[str, tuple[type, bool, type]], ...]:
    """What passes may ask about the modules that a graph calls, beside the graph itself."""
    names = dict.fromkeys(str(n.target) for n in capture.graph.nodes if n.op == "call_module")
    return tuple((name, traits(block.get_submodule(name))) for name in names)


def attention_texts(
    recipe: Recipe, block: torch.nn.Module, capture: Capture, places: tuple[SitePlace, ...]
) -> tuple[str, ...]:
    """The attention modules that passes look into, as text; their processors are part of the structure."""
    reads = any(stage.method.reads_attention() for stage in recipe.stages)
    keyed = any(site.merge == "keys" for site in recipe.sites)
    if recipe.prompt is None and not (reads or keyed or recipe.plan.proportional):
        return ()
    locals_ = {p.local for p in places if recipe.sites[p.site_index].kind == "attention"}
    calls = [n for n in capture.graph.nodes if n.op == "call_module" and n.target in locals_]
    return tuple(attention_text(call, block.get_submodule(str(call.target))) for call in calls)


def confirm_kinds(
    recipe: Recipe, block: torch.nn.Module, capture: Capture, places: tuple[SitePlace, ...]
) -> None:
    """Check that attention sites compute attention, and feed-forward sites do not."""
    for place in places:
        spec = recipe.sites[place.site_index]
        calls = [n for n in capture.graph.nodes if n.op == "call_module" and n.target == place.local]
        for call in calls:
            found = has_attention(call, block.get_submodule(place.local))
            if found != (spec.kind == "attention"):
                raise SiteError(
                    f"site {spec.id!r} at {place.path} is said to be {spec.kind}, but it "
                    f"{'computes' if found else 'does not compute'} attention"
                )
