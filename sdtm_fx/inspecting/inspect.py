"""`survey`: opens, calls, observes and takes a model apart, without weights."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import torch

from sdtm_fx.cost.counter import MacCounter, Macs
from sdtm_fx.errors import InspectionError
from sdtm_fx.inspecting.arguments import CallSizes
from sdtm_fx.inspecting.blocks import blocks_with_attention, capture_blocks, outer_nodes, structures_of
from sdtm_fx.inspecting.building import build_on_meta, with_layers
from sdtm_fx.inspecting.calling import FoundCall, find_call
from sdtm_fx.inspecting.finding import find_sites
from sdtm_fx.inspecting.given import parse_inputs
from sdtm_fx.inspecting.no_site import no_site, refuse_autoencoder
from sdtm_fx.inspecting.observing import AttentionCall, attention_calls, observe
from sdtm_fx.inspecting.opening import Subject
from sdtm_fx.inspecting.pointwise import keep_pointwise
from sdtm_fx.inspecting.small import small_copy
from sdtm_fx.inspecting.survey import FoundSite, LeftOut, Survey


def survey(
    subject: Subject,
    inputs: Sequence[str] = (),
    *,
    grid: tuple[int, int] | None = None,
    text: int = 77,
    batch: int = 1,
    layers: int = 2,
) -> Survey:
    """Look at a model.

    Args:
        subject: Which.
        inputs: Arguments of the example call, as ``--input`` has them.
        grid: (height, width) in image tokens of the finest grid, for MACs; absent: that of the example call.
        text: Text tokens, for MACs.
        batch: Samples, for MACs.
        layers: Most layers of each kind in the smaller copy, in which feed-forwards are run.

    Raises:
        InspectionError: It cannot be built or called (at that size, either), or has no site; or it is an autoencoder.
    """
    refuse_autoencoder(subject)
    given = parse_inputs(inputs, subject.config)
    # A call is looked for with few layers, which take the same arguments.
    few = build_on_meta(subject, with_layers(subject.config, 2))
    call = find_call(few, subject.config, given)
    model = build_on_meta(subject)
    observation = observe(model, call)
    attention = attention_calls(observation)
    paths = blocks_with_attention(model, attention)
    captures, why_not = capture_blocks(model, call, paths)
    sites, left_out = find_sites(model, observation, attention, captures)
    if any(not site.is_attention for site in sites):
        sites, mixing = keep_pointwise(sites, small_copy(subject, call, layers))
        left_out += mixing
    left_out += _uncaptured(attention, why_not) + _text_only(attention)
    if not sites:
        raise no_site(subject, observation, attention, left_out)
    found = Survey(
        subject, model, call, structures_of(model, captures), tuple(sites), tuple(left_out),
        outer_nodes(model, call, list(captures)), {}, Macs(), call.sizes,
    )  # fmt: skip
    edge = found.patch or 1
    size = replace(call.sizes, batch=batch, text=text)
    if grid is not None:
        size = replace(size, height=grid[0] * edge, width=grid[1] * edge)
    macs, total = _count(model, call, sites, size)
    return replace(found, macs=macs, total=total, size=size)


def _count(
    model: torch.nn.Module, call: FoundCall, sites: Sequence[FoundSite], size: CallSizes
) -> tuple[dict[str, Macs], Macs]:
    watched = {site.path: model.get_submodule(site.path) for site in sites}
    try:
        with call.shapes(), MacCounter() as counter, counter.watching(watched):
            model(**call.values(size))
    except Exception as error:
        raise InspectionError(
            f"{type(model).__name__} does not run on a latent of {size.height}x{size.width} with {size.text} tokens of "
            f"text: {type(error).__name__}: {error}; choose --height, --width and --text that it takes"
        ) from error
    return counter.inside, counter.macs


def _uncaptured(attention: Sequence[AttentionCall], why_not: dict[str, str]) -> list[LeftOut]:
    return [
        LeftOut(call.path, "attention", why)
        for block, why in why_not.items()
        for call in attention
        if call.path == block or call.path.startswith(f"{block}.")
    ]


def _text_only(attention: Sequence[AttentionCall]) -> list[LeftOut]:
    return [
        LeftOut(call.path, "attention", f"no image tokens among its queries (length {call.queries.says()})")
        for call in attention
        if not call.queries.image
    ]
