"""Whether a feed-forward treats every token by itself: permuted tokens must come out permuted, number for number."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import torch

from sdtm_fx.inspecting.patterns import family
from sdtm_fx.inspecting.small import SmallCopy
from sdtm_fx.inspecting.survey import FoundSite, LeftOut

_TOLERANCE = 1e-4
"""Of the largest number: products of other rows are summed in another order."""


def keep_pointwise(sites: Sequence[FoundSite], copy: SmallCopy) -> tuple[list[FoundSite], list[LeftOut]]:
    """Run one feed-forward of each kind on permuted tokens, and drop those whose tokens see each other.

    Args:
        sites: The sites; attention passes.
        copy: A smaller copy of their model.

    Returns:
        The sites that are left, and the others.
    """
    probes: dict[str, FoundSite] = {}
    present = {path for path, _ in copy.model.named_modules()}
    for site in sites:
        if not site.is_attention and site.path in present:
            probes.setdefault(family(site.path), site)
    mixing = {name for name, site in probes.items() if not is_pointwise(site, copy)}
    kept = [s for s in sites if s.is_attention or family(s.path) not in mixing]
    why = "its tokens see each other (permuted tokens do not come out permuted), as behind a convolution"
    return kept, [LeftOut(s.path, s.kind, why) for s in sites if s not in kept]


def is_pointwise(site: FoundSite, copy: SmallCopy) -> bool:
    """Whether permuting the tokens that a site's module is given permutes what it returns."""
    module = copy.model.get_submodule(site.path)
    seen: list[tuple[tuple[Any, ...], dict[str, Any]]] = []

    def note(_: torch.nn.Module, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> None:
        seen.append((args, dict(kwargs)))

    handle = module.register_forward_pre_hook(note, with_kwargs=True)
    try:
        with torch.no_grad():
            copy.model(**copy.arguments(replace(copy.call.sizes, batch=2)))
    finally:
        handle.remove()
    args, kwargs = seen[0]
    tokens = args[site.input] if isinstance(site.input, int) else kwargs[site.input]
    order = torch.randperm(tokens.shape[1], generator=torch.Generator().manual_seed(0))
    if isinstance(site.input, int):
        permuted_args = tuple(tokens[:, order] if i == site.input else a for i, a in enumerate(args))
        permuted_kwargs = kwargs
    else:
        permuted_args, permuted_kwargs = args, {**kwargs, site.input: tokens[:, order]}
    with torch.no_grad():
        plain, permuted = module(*args, **kwargs), module(*permuted_args, **permuted_kwargs)
    if site.output is not None:
        plain, permuted = plain[site.output], permuted[site.output]
    difference = (plain[:, order] - permuted).abs().max()
    return bool(difference <= _TOLERANCE * plain.abs().max())
