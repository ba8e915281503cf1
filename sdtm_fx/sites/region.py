"""Questions about a block graph that a list of nodes cannot answer, asked of networkx."""

from __future__ import annotations

import operator

import networkx as nx
import torch
from torch import fx

_ADD = {operator.add, operator.iadd, torch.add}


def as_digraph(graph: fx.Graph) -> nx.DiGraph[fx.Node]:
    """View an fx graph as a networkx graph: an edge from every node to each of its users."""
    digraph: nx.DiGraph[fx.Node] = nx.DiGraph()
    for node in graph.nodes:
        digraph.add_node(node)
        digraph.add_edges_from((operand, node) for operand in node.all_input_nodes)
    return digraph


def path_to_residual(graph: fx.Graph, entry: fx.Node, exit_: fx.Node) -> list[fx.Node] | None:
    """Follow a site's exit to the residual addition that takes it in.

    Every node returned post-dominates the one before it, so the site has a single way out; the last is an
    addition whose other operand does not depend on the site and has the tokens of its entry.

    A module that runs on text and image in one sequence may be cut there and then, with an addition for each part; the
    additions take in what the cuts leave.

    Returns:
        The nodes from `exit_` to the addition, or to the cuts; None when there is no such addition.
    """
    parts = _token_cuts(exit_)
    if parts:
        found = [_to_addition(graph, part, part) for part in parts]
        return [exit_] if all(chain is not None for chain in found) else None
    return _to_addition(graph, entry, exit_)


def _token_cuts(node: fx.Node) -> list[fx.Node]:
    """The slices along the tokens that a sequence is cut into, where that is all that becomes of it."""
    users = [user for user in node.users if not _reads_shape(user)]
    return users if len(users) > 1 and all(_cuts_tokens(user) for user in users) else []


def _reads_shape(node: fx.Node) -> bool:
    return node.op == "call_method" and node.target == "size"


def _cuts_tokens(node: fx.Node) -> bool:
    if node.op != "call_function" or node.target is not operator.getitem:
        return False
    index = node.args[1]
    whole = slice(None)
    if not isinstance(index, tuple) or len(index) < 2 or not all(isinstance(i, slice) for i in index):
        return False
    return index[0] == whole and index[1] != whole and all(i == whole for i in index[2:])


def _to_addition(graph: fx.Graph, entry: fx.Node, exit_: fx.Node) -> list[fx.Node] | None:
    digraph = as_digraph(graph)
    output = next(iter(reversed(graph.nodes)))
    after = nx.immediate_dominators(digraph.reverse(copy=False), output)
    inside = nx.descendants(digraph, exit_)
    chain = [exit_]
    while chain[-1] is not output:
        step = after.get(chain[-1])
        if step is None or step is chain[-1]:
            return None
        chain.append(step)
        if is_addition(step) and any(
            other not in inside and other is not exit_ and _same_tokens(other, entry)
            for other in step.all_input_nodes
        ):
            return chain
    return None


def is_addition(node: fx.Node) -> bool:
    """Whether a node adds two tensors."""
    if node.op == "call_method":
        return node.target in ("add", "add_")
    return node.op == "call_function" and node.target in _ADD


def descends_from(node: fx.Node, ancestor: fx.Node) -> bool:
    """Whether `ancestor` is `node` or is needed to compute it."""
    return node is ancestor or ancestor in nx.ancestors(as_digraph(node.graph), node)


def _same_tokens(node: fx.Node, entry: fx.Node) -> bool:
    mine, theirs = node.meta.get("val"), entry.meta.get("val")
    return (
        isinstance(mine, torch.Tensor)
        and isinstance(theirs, torch.Tensor)
        and mine.ndim == theirs.ndim
        and mine.shape[:2] == theirs.shape[:2]
    )
