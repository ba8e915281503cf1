"""The published shapes of models, built without weights: what recipes are explained and counted on."""

from __future__ import annotations

import itertools

import torch
from torch import nn

from sdtm_fx.bench.configs import PUBLISHED as PUBLISHED
from sdtm_fx.errors import RewriteError, nearest
from sdtm_fx.toy.flux import build_flux
from sdtm_fx.toy.sd3 import build_sd3

TOYS = ("toy-sd3", "toy-flux")


def build_shape(name: str) -> nn.Module:
    """Build a published model on meta, or a toy without its weights.

    Raises:
        RewriteError: There is none of that name.
    """
    known = (*PUBLISHED, *TOYS)
    if name not in known:
        raise RewriteError(f"no shape {name!r}{nearest(name, known)}; accepted: {', '.join(known)}")
    if name in TOYS:
        return build_sd3() if name == "toy-sd3" else build_flux()
    with torch.device("meta"):
        return PUBLISHED[name].build(**PUBLISHED[name].config)


def shape_of(recipe: str) -> str:
    """Return the shape that a recipe is for by its name: the same name, or how the name ends, or else begins.

    Args:
        recipe: Name of the recipe; parts in front of a slash do not count.

    Raises:
        RewriteError: The name says nothing.
    """
    known = (*PUBLISHED, *TOYS)
    base = recipe.rpartition("/")[2]
    if base in known:
        return base
    ending = [name for name in known if base.endswith(f"-{name}")]
    if ending:
        return max(ending, key=len)
    best = max(known, key=lambda name: (_shared(name, base), -len(name)))
    if not _shared(best, base):
        raise RewriteError(
            f"no published shape for recipe {recipe!r}; give --model ({', '.join(known)}) or --config"
        )
    return best


def _shared(left: str, right: str) -> int:
    """Number of words with which both begin."""
    same = (a == b for a, b in zip(left.split("-"), right.split("-"), strict=False))
    return sum(itertools.takewhile(bool, same))
