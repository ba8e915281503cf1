"""From a matched module to its place in the graph of its block, confirmed by structure."""

from __future__ import annotations

import operator
from dataclasses import dataclass

import torch
from torch import fx

from sdtm_fx.capture.arguments import Signature
from sdtm_fx.errors import SiteError, nearest
from sdtm_fx.recipe.sections import SiteSpec
from sdtm_fx.sites.region import path_to_residual


@dataclass(frozen=True)
class Site:
    """One site in one block graph.

    Attributes:
        spec: What the recipe says of it.
        local: Path of the module inside the block.
        node: The module's call.
        entry: The value that carries the tokens in, [B, N, D].
        slot: Where `entry` stands in the call: a position or a keyword.
        exit: The value that carries the tokens out, [B, N, D'].
        side: Other outputs of the module that are used (the text half of joint attention).
    """

    spec: SiteSpec
    local: str
    node: fx.Node
    entry: fx.Node
    slot: int | str
    exit: fx.Node
    side: tuple[fx.Node, ...]


def locate(graph: fx.Graph, block: torch.nn.Module, spec: SiteSpec, local: str, path: str) -> Site:
    """Find a site in its block's graph and check that it is one.

    Args:
        graph: Graph of the block, nodes with example values in ``meta["val"]``.
        block: The block.
        spec: The site of the recipe.
        local: Path of the site's module inside the block.
        path: Its path in the model, for messages.

    Raises:
        SiteError: The module is not called exactly once and `call` does not say which call is meant, has no such
            argument or output, changes the number of tokens, or merges them and does not end in a residual addition.
    """
    where = f"site {spec.id!r} at {path}"
    calls = [n for n in graph.nodes if n.op == "call_module" and n.target == local]
    node = _call(graph, calls, spec, where)
    slot = _slot(node, block.get_submodule(local), spec.input, where)
    entry = node.args[slot] if isinstance(slot, int) else node.kwargs[slot]
    if not isinstance(entry, fx.Node) or not _is_sequence(entry):
        raise SiteError(
            f"{where}: input {spec.input!r} is not a [batch, tokens, width] tensor{_as_picture(entry)}"
        )
    exit_, side = _outputs(node, spec, where)
    if not _is_sequence(exit_) or exit_.meta["val"].shape[:2] != entry.meta["val"].shape[:2]:
        raise SiteError(
            f"{where}: tokens go in as {_shape(entry)} and come out as {_shape(exit_)}; "
            "a site keeps the number of tokens (is `output` right?)"
        )
    # Where keys alone are merged, the tokens themselves stay whole, whatever becomes of them.
    if spec.merge == "tokens" and path_to_residual(graph, entry, exit_) is None:
        raise SiteError(f"{where}: its output does not end in one residual addition")
    return Site(spec, local, node, entry, slot, exit_, side)


def _call(graph: fx.Graph, calls: list[fx.Node], spec: SiteSpec, where: str) -> fx.Node:
    """The call of a site's module that is meant."""
    if spec.call is not None and spec.call < len(calls):
        return calls[spec.call]
    if spec.call is None and len(calls) == 1:
        return calls[0]
    called = sorted({str(n.target) for n in graph.nodes if n.op == "call_module"})
    which = f"call {spec.call} is none of them" if spec.call is not None else "a site is called once"
    hint = f" (`call: 0` to `call: {len(calls) - 1}` says which)" if len(calls) > 1 else ""
    raise SiteError(
        f"{where}: the block calls it {len(calls)} times, {which}; it calls {', '.join(called)}{hint}"
    )


def _slot(node: fx.Node, module: torch.nn.Module, wanted: int | str, where: str) -> int | str:
    names = Signature.of(type(module).forward).names
    if isinstance(wanted, str) and wanted not in names:
        raise SiteError(
            f"{where}: {type(module).__name__} has no argument {wanted!r}; it has {', '.join(names)}"
            f"{nearest(wanted, names)}"
        )
    position = wanted if isinstance(wanted, int) else names.index(wanted)
    if position < len(node.args):
        return position
    name = names[position] if position < len(names) else str(wanted)
    if name in node.kwargs:
        return name
    raise SiteError(f"{where}: the block does not pass argument {wanted!r}")


def _outputs(node: fx.Node, spec: SiteSpec, where: str) -> tuple[fx.Node, tuple[fx.Node, ...]]:
    if spec.output is None:
        if not isinstance(node.meta["val"], torch.Tensor):
            raise SiteError(f"{where}: it returns {_shape(node)}; say which with `output`")
        return node, ()
    items = {n.args[1]: n for n in node.users if n.target is operator.getitem}
    if spec.output not in items or len(items) != len(node.users):
        raise SiteError(
            f"{where}: output {spec.output} is not taken by the block; "
            f"it takes {', '.join(sorted(map(str, items))) or 'none'}"
        )
    exit_ = items.pop(spec.output)
    return exit_, tuple(n for n in items.values() if n.users)


def _as_picture(entry: object) -> str:
    """What to say of a module that takes the tokens as a picture; nothing of any other."""
    value = entry.meta.get("val") if isinstance(entry, fx.Node) else None
    if not isinstance(value, torch.Tensor) or value.ndim != 4:
        return ""
    return (
        f" but {list(value.shape)}: a picture of all tokens, which a convolution goes over; merged tokens lie on no "
        "grid, so such a module stays dense"
    )


def _is_sequence(node: fx.Node) -> bool:
    value = node.meta.get("val")
    return isinstance(value, torch.Tensor) and value.ndim == 3


def _shape(node: fx.Node) -> str:
    value = node.meta.get("val")
    if isinstance(value, torch.Tensor):
        return str(list(value.shape))
    return (
        f"a {type(value).__name__} of {len(value)}"
        if isinstance(value, tuple | list)
        else type(value).__name__
    )
