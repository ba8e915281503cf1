"""Finding sites by structure: which modules of a block compute attention or a feed-forward on image tokens."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import networkx as nx
import torch
from torch import fx

from sdtm_fx.capture.tracer import Capture
from sdtm_fx.errors import SiteError
from sdtm_fx.inspecting.events import What
from sdtm_fx.inspecting.lengths import Length
from sdtm_fx.inspecting.observing import AttentionCall, Lengths, Observation, Seen
from sdtm_fx.inspecting.sequence import Sequenced, sequence_of
from sdtm_fx.inspecting.survey import FoundSite, LeftOut, Rotary, SiteKind
from sdtm_fx.recipe.sections import SiteSpec
from sdtm_fx.sites.locating import Site, locate
from sdtm_fx.sites.region import as_digraph, path_to_residual

_ACTIVATIONS = ("gelu", "silu", "relu", "sigmoid", "tanh", "mish")


@dataclass(frozen=True)
class _Place:
    """A module that a block calls."""

    path: str
    block: str
    local: str
    node: fx.Node
    seen: Seen
    call: int | None = None


def find_sites(
    model: torch.nn.Module,
    observation: Observation,
    attention: Sequence[AttentionCall],
    captures: Mapping[str, Capture],
) -> tuple[list[FoundSite], list[LeftOut]]:
    """Look at every module that a block calls.

    Args:
        model: The model.
        observation: What happens in its calls.
        attention: Where attention is computed.
        captures: Graphs of its blocks.

    Returns:
        The sites, and modules that are like sites but cannot be.
    """
    sites: list[FoundSite] = []
    left_out: list[LeftOut] = []
    for block, capture in captures.items():
        inside = [a for a in attention if a.path == block or a.path.startswith(f"{block}.")]
        for call in inside:
            if call.path == block:
                left_out.append(
                    LeftOut(block, "attention", "the block's own forward computes it, no module of it does")
                )
        for place in _places(block, capture, observation):
            calls = observation.calls[place.path]
            mine = [a for a in inside if a.path == place.path or a.path.startswith(f"{place.path}.")]
            kind = _attention_kind(mine) if mine else _feed_forward_kind(place, observation)
            if kind is None:
                continue
            if place.call is None and len(calls) > 1:
                left_out.append(
                    LeftOut(
                        place.path, kind, f"its block calls it {len(calls)} times, not once for the image"
                    )
                )
                continue
            keys = mine[0].keys if mine else None
            found = _as_site(model, place, kind, keys, observation, capture)
            (sites if isinstance(found, FoundSite) else left_out).append(found)  # type: ignore[arg-type]
    return sites, left_out


def _places(block: str, capture: Capture, observation: Observation) -> Iterator[_Place]:
    nodes: dict[str, list[fx.Node]] = {}
    for node in capture.graph.nodes:
        if node.op == "call_module":
            nodes.setdefault(str(node.target), []).append(node)
    for local, called in nodes.items():
        calls = observation.calls.get(f"{block}.{local}", ())
        if not calls:
            continue
        # A module that is called for the image once, and again for something else, is a site in that call.
        images = (
            [i for i, seen in enumerate(calls) if _takes_image(seen)] if len(calls) == len(called) else []
        )
        if len(calls) > 1 and len(images) == 1:
            yield _Place(f"{block}.{local}", block, local, called[images[0]], calls[images[0]], images[0])
        else:
            yield _Place(f"{block}.{local}", block, local, called[0], calls[0])


def _takes_image(seen: Seen) -> bool:
    return any(len(s) == 3 and s[1] is not None and s[1].image > 0 for s in seen.inputs.values())


def _attention_kind(calls: Sequence[AttentionCall]) -> SiteKind | None:
    call = calls[0]
    if call.queries.image == 0:
        return None
    if call.kind == "linear":
        return "linear attention"
    if call.keys.image == 0:
        return "cross-attention"
    return (
        "self-attention"
        if call.queries.stream == "image" and call.keys == call.queries
        else "joint attention"
    )


def _feed_forward_kind(place: _Place, observation: Observation) -> SiteKind | None:
    """Linear, activation, linear, in one module; or a linear layer whose activation and second layer follow."""
    lengths = [
        s[1] for s in place.seen.inputs.values() if len(s) == 3 and s[1] is not None and s[1].image > 0
    ]
    # A picture, [B, C, H, W] or [B, H, W, C]: what carries tokens here follows the sides, not the area.
    pictures = [s for s in place.seen.inputs.values() if len(s) == 4]
    if not lengths and not pictures:
        return None
    inner = observation.within(place.path, "linear", "activation")
    wide = [e for e in inner if e.what == "linear" and _runs_on(e, lengths, bool(pictures))]
    active = any(e.what == "activation" for e in inner)
    if len(wide) >= 2 and active:
        return "feed-forward"
    return (
        "feed-forward"
        if len(wide) == 1 and wide[0].path == place.path and _continues(place, observation)
        else None
    )


def _runs_on(event: Seen, lengths: Sequence[Length], pictures: bool) -> bool:
    out = event.outputs.get("", ())
    if pictures and len(out) == 4:
        return True
    return len(out) >= 3 and out[-2] in lengths


def _continues(place: _Place, observation: Observation) -> bool:
    """Whether behind a linear layer come an activation and a second linear layer, and then the residual."""
    graph = place.node.graph
    entry = _first_input(place.node)
    chain = path_to_residual(graph, entry, place.node)
    second = next((n for n in (chain or [])[1:] if _holds(n, place.block, observation, "linear")), None)
    if second is None:
        return False
    # A gate may be another layer on the same tokens: the activation need not be on this one's own way.
    digraph: Any = as_digraph(graph)
    between = nx.descendants(digraph, entry) & nx.ancestors(digraph, second)
    return any(_activates(n, place.block, observation) for n in between)


def _holds(node: fx.Node, block: str, observation: Observation, what: What) -> bool:
    return node.op == "call_module" and bool(observation.within(f"{block}.{node.target}", what))


def _activates(node: fx.Node, block: str, observation: Observation) -> bool:
    """Whether a node is an activation alone, and not a module that also has layers."""
    name = str(getattr(node.target, "__name__", node.target))
    if node.op == "call_module":
        return _holds(node, block, observation, "activation") and not _holds(
            node, block, observation, "linear"
        )
    return node.op == "call_function" and name in _ACTIVATIONS


def _first_input(node: fx.Node) -> fx.Node:
    return next(n for n in (*node.args, *node.kwargs.values()) if isinstance(n, fx.Node))


def _as_site(
    model: torch.nn.Module,
    place: _Place,
    kind: SiteKind,
    keys: Length | None,
    observation: Observation,
    capture: Capture,
) -> FoundSite | LeftOut:
    """Try the arguments and outputs that may carry the tokens, until one is a site."""
    block, why = (
        model.get_submodule(place.block),
        "no argument of it is [batch, tokens, width] with image tokens",
    )
    for name, slot, length in _inputs(place):
        for output in _outputs(place, length):
            spec = SiteSpec(
                id="found",
                kind="attention" if keys else "feed_forward",
                match=place.path,
                input=slot,
                output=output,
                call=place.call,
            )
            try:
                site = locate(capture.graph, block, spec, place.local, place.path)
            except SiteError as error:
                why = str(error).partition(": ")[2]
                continue
            sequenced = sequence_of(place.path, place.block, length, observation)
            return _found(place, kind, keys, name, slot, output, length, sequenced, site, observation)
    return LeftOut(place.path, kind, why)


def _found(
    place: _Place,
    kind: SiteKind,
    keys: Length | None,
    name: str,
    slot: int | str,
    output: int | None,
    length: Length,
    sequenced: Sequenced,
    site: Site,
    observation: Observation,
) -> FoundSite:
    rotary, positions = _position_arguments(place, name)
    return FoundSite(
        place.path, place.block, kind, length, sequenced.order, slot, output, sequenced.beside, rotary, positions,
        _parallel(place, site), keys, place.call,
    )  # fmt: skip


def _inputs(place: _Place) -> Iterator[tuple[str, int | str, Length]]:
    """The arguments with image tokens: name, how the block passes it, and length."""
    passed = list(place.seen.inputs)
    for name, dims in place.seen.inputs.items():
        if len(dims) == 3 and dims[1] is not None and dims[1].image > 0 and "." not in name:
            slot: int | str = name if name in place.node.kwargs else passed.index(name)
            yield name, slot, dims[1]


def _outputs(place: _Place, length: Length) -> Iterator[int | None]:
    for name, dims in place.seen.outputs.items():
        if len(dims) == 3 and dims[1] == length:
            yield int(name) if name else None


def _position_arguments(place: _Place, tokens: str) -> tuple[Rotary | None, tuple[str, ...]]:
    """Which arguments follow the image beside the tokens themselves: rotary tables, or something else.

    Tables are a pair of equal shapes, as long along one axis as a sequence with the image in it.
    """
    nested: dict[str, list[Lengths]] = {}
    others: dict[str, None] = {}
    for name, dims in place.seen.inputs.items():
        argument, dot, _ = name.partition(".")
        if argument == tokens or not any(d is not None and d.image > 0 for d in dims):
            continue
        if dot:
            nested.setdefault(argument, []).append(dims)
        # Another stream of tokens is [batch, tokens, width], and comes by a name that says so.
        elif len(dims) != 3 or not argument.endswith("hidden_states"):
            others[argument] = None
    rotary: Rotary | None = None
    for argument, tables in nested.items():
        first = tables[0]
        axis = next(i for i, d in enumerate(first) if d is not None and d.image > 0)
        rest = [d for i, d in enumerate(first) if i != axis]
        whole = all(d is not None and not d.image and not d.text for d in rest)
        alone = all(d is not None and d.constant == 1 for d in rest[:-1])
        if len(tables) == 2 and tables[0] == tables[1] and whole and alone and rotary is None:
            rotary = Rotary(argument, axis)
        else:
            others[argument] = None
    return rotary, tuple(others)


def _parallel(place: _Place, site: Site) -> tuple[str, ...]:
    """Modules whose outputs are joined with the site's, channel by channel, before one projection."""
    chain = path_to_residual(place.node.graph, site.entry, site.exit) or []
    joined = next((n for n in chain if n.target is torch.cat), None)
    if joined is None:
        return ()
    found: dict[str, None] = {}
    for part in joined.all_input_nodes:
        pending, seen = [part], {part}
        while pending:
            node = pending.pop()
            if node.op == "call_module" and (node is place.node or node.all_input_nodes):
                if node is not place.node and any(a is site.entry for a in node.all_input_nodes):
                    found[f"{place.block}.{node.target}"] = None
                    continue
                if node is place.node:
                    continue
            pending += [n for n in node.all_input_nodes if n not in seen and n is not site.entry]
            seen |= set(node.all_input_nodes)
    return tuple(found)
