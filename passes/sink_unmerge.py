"""Sink unmerge: ``g(unmerge(y))`` becomes ``unmerge(g(y))`` where g works on each token alone.

What may move depends on what unmerging does to a slot (`Unmerging`):

| every token gets | moves |
|---|---|
| a copy of its slot | gates, activations, casts, additions, linear layers: all work on single tokens |
| an average of slots | what is affine: gates, additions, plain linear layers |
| a linear combination of slots | what is linear: gates, plain linear layers without a bias |

Parts that one plan unmerged are joined, unless a stage reads one of them alone (`joined_parts`).

What is left in front of the residual addition is one gather, or one product.
"""

from __future__ import annotations

import operator

import torch
from torch import fx
from torch.nn import functional as F

from sdtm_fx.base_plan import Unmerging
from sdtm_fx.passes.joined_parts import is_channel_cat, is_taken_apart, read_alone
from sdtm_fx.passes.linear_layer import obstacle
from sdtm_fx.rewriting.work import BlockWork, Pass
from sdtm_fx.runtime import ops

_ELEMENTWISE_MODULES = (
    torch.nn.GELU, torch.nn.SiLU, torch.nn.ReLU, torch.nn.Sigmoid, torch.nn.Tanh, torch.nn.Mish,
    torch.nn.Dropout, torch.nn.Identity,
)  # fmt: skip
_ELEMENTWISE = {
    operator.mul, operator.truediv, operator.add, operator.sub, operator.neg,
    torch.mul, torch.add, torch.sub, torch.clamp, torch.clip,
    F.gelu, F.silu, F.relu, F.tanh,
}  # fmt: skip
_ELEMENTWISE_METHODS = {"mul", "add", "sub", "to", "type_as", "clip", "clamp", "contiguous"}
_SCALES = {operator.mul, torch.mul, "mul"}
_ADDS = {operator.add, operator.sub, torch.add, torch.sub, "add", "sub"}
_CASTS = {"to", "type_as"}


def sink_unmerge(work: BlockWork) -> int:
    """Move every unmerge as far down as it goes; returns the number of moves."""
    if not work.recipe.passes.sink_unmerge:
        return 0
    moves = 0
    pending = work.calls(ops.unmerge_tokens)
    while pending:
        unmerge = pending.pop()
        moved = _sink_once(work, unmerge)
        if moved is not None:
            moves += 1
            pending.append(moved)
    work.drop_unused()
    return moves


def _sink_once(work: BlockWork, unmerge: fx.Node) -> fx.Node | None:
    users = list(unmerge.users)
    if len(users) != 1:
        return None
    user = users[0]
    joins = _joins_same_plan(user, unmerge) and not is_taken_apart(work, user)
    if not (joins or _works_per_token(work, user, unmerge)):
        return None
    plan = unmerge.args[0]
    merged = [n for n in user.all_input_nodes if n.target is ops.unmerge_tokens and n.args[0] is plan]
    if joins:
        _store_aside(work, merged)
    for node in merged:
        user.replace_input_with(node, node.args[1])  # type: ignore[arg-type]
    after = list(user.users)
    with work.graph.inserting_after(user):
        below = work.graph.call_function(ops.unmerge_tokens, (plan, user))
    below.meta["val"] = user.meta["val"]
    below.meta["site"] = "+".join(n.meta["site"] for n in merged)
    for node in after:
        node.replace_input_with(user, below)
    for node in merged:
        work.graph.erase_node(node)
    return below


def _store_aside(work: BlockWork, parts: list[fx.Node]) -> None:
    """On a dense step, store what some stage reads of parts that are about to be joined, in front of that."""
    if work.variant.refresh is None:
        return
    for part in read_alone(work, parts):
        value = part.args[1]
        with work.graph.inserting_after(value):  # type: ignore[arg-type]
            stored = work.graph.call_function(ops.store_feature, (work.ctx, value, part.meta["site"]))
        stored.meta["val"] = part.meta["val"]
        part.update_arg(1, stored)


def _works_per_token(work: BlockWork, user: fx.Node, unmerge: fx.Node) -> bool:
    """Whether a node computes each token of `unmerge` from that token and from values without a token axis."""
    if work.unmerging is not Unmerging.COPY:
        return _is_affine(work, user, unmerge)
    if user.op == "call_module":
        module = work.block.get_submodule(str(user.target))
        return isinstance(module, _ELEMENTWISE_MODULES) or _is_linear(module)
    known = (user.op == "call_function" and user.target in _ELEMENTWISE) or (
        user.op == "call_method" and user.target in _ELEMENTWISE_METHODS
    )
    return known and all(n is unmerge or _is_same_for_all_tokens(n) for n in user.all_input_nodes)


def _is_affine(work: BlockWork, user: fx.Node, unmerge: fx.Node) -> bool:
    """Whether a node is affine in the tokens of `unmerge`, the same for all of them; without a constant, where
    unmerging does not keep one."""
    keeps_constants = work.unmerging is Unmerging.AVERAGE
    if user.op == "call_module":
        module = work.block.get_submodule(str(user.target))
        if type(module) is torch.nn.Identity:
            return True
        return obstacle(module) is None and (keeps_constants or module.bias is None)
    if user.op not in ("call_function", "call_method"):
        return False
    operands = [n for n in (*user.args, *user.kwargs.values()) if n is not None]
    constant = all(n is unmerge or _is_same_for_all_tokens(n) for n in user.all_input_nodes)
    if user.target in _SCALES:
        return constant and operands.count(unmerge) == 1  # its square is none
    if user.target is operator.truediv:
        return constant and user.args[0] is unmerge and user.args[1] is not unmerge
    if user.target in _ADDS:
        only_tokens = all(n is unmerge for n in user.args)
        return constant and (keeps_constants or only_tokens)
    if user.target in _CASTS:
        return user.meta["val"].dtype.is_floating_point and user.args[0] is unmerge
    return user.target in (operator.neg, "contiguous")


def _is_linear(module: torch.nn.Module) -> bool:
    """Whether a module is a linear layer, or an adapter around one: LoRA layers work on each token alone too."""
    adapted = getattr(module, "get_base_layer", None)
    return type(module if adapted is None else adapted()) is torch.nn.Linear


def _joins_same_plan(user: fx.Node, unmerge: fx.Node) -> bool:
    """Whether a node concatenates along the channels only what was unmerged by one plan."""
    if user.target is not torch.cat or not is_channel_cat(user):
        return False
    return all(
        p.target is ops.unmerge_tokens and p.args[0] is unmerge.args[0] and len(p.users) == 1
        for p in user.all_input_nodes
    )


def _is_same_for_all_tokens(node: fx.Node) -> bool:
    value = node.meta.get("val")
    if isinstance(value, torch.Tensor):
        return value.ndim < 2 or (value.ndim == 3 and value.shape[1] == 1)
    return isinstance(value, int | float)


SINK_UNMERGE = Pass("sink_unmerge", exact=True, run=sink_unmerge)
