"""Arguments that rewritten graphs have beside those of what they were traced from."""

from __future__ import annotations

from torch import fx


def first_placeholder(graph: fx.Graph, name: str) -> fx.Node:
    """Put a placeholder in front of all others, under a name that none of them has."""
    taken = {n.target for n in graph.nodes if n.op == "placeholder"}
    while name in taken:
        name += "_"
    with graph.inserting_before(next(iter(graph.nodes))):
        return graph.placeholder(name)
