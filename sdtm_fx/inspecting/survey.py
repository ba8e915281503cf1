"""What an inspection finds: blocks by structure, sites, and what is like a site but cannot be merged."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from fractions import Fraction
from math import isqrt
from typing import Literal

import torch
from torch import fx

from sdtm_fx.cost.counter import Macs
from sdtm_fx.inspecting.arguments import CallSizes
from sdtm_fx.inspecting.calling import FoundCall
from sdtm_fx.inspecting.lengths import Length
from sdtm_fx.inspecting.opening import Subject

SiteKind = Literal["self-attention", "cross-attention", "joint attention", "linear attention", "feed-forward"]
Order = Literal["image", "text first", "image first", "unknown"]


@dataclass(frozen=True)
class BlockStructure:
    """Blocks whose calls make the same graph.

    Attributes:
        paths: The blocks, in the order of execution.
        kind: Class of the blocks.
        graph: The graph of the first.
    """

    paths: tuple[str, ...]
    kind: str
    graph: fx.Graph

    @property
    def nodes(self) -> int:
        """Nodes of the graph."""
        return len(list(self.graph.nodes))


@dataclass(frozen=True)
class Rotary:
    """Tables (cos, sin) of positions.

    Attributes:
        argument: Of the module that carries them.
        axis: That the sequence lies along.
    """

    argument: str
    axis: int


@dataclass(frozen=True)
class FoundSite:
    """A module whose image tokens can be merged.

    Attributes:
        path: Where it is.
        block: The block whose forward calls it.
        kind: What it computes.
        tokens: Length of the sequence that goes in.
        order: Where the image is in it.
        input: Argument that carries the tokens: position or name.
        output: Index of the tokens in what it returns; None: it returns them alone.
        beside: Argument of the block with the tokens that are not image, where they are in the sequence.
        rotary: Its tables of positions.
        positions: Arguments with positions in another form, which nothing can gather.
        parallel: Modules that it meets in one projection.
        keys: Length of what its queries look at; None for a feed-forward.
        call: Which of several calls of the module it is; None: it is called once.
    """

    path: str
    block: str
    kind: SiteKind
    tokens: Length
    order: Order
    input: int | str
    output: int | None
    beside: str | None = None
    rotary: Rotary | None = None
    positions: tuple[str, ...] = ()
    parallel: tuple[str, ...] = ()
    keys: Length | None = None
    call: int | None = None

    @property
    def is_attention(self) -> bool:
        """Whether it computes attention."""
        return self.kind != "feed-forward"


@dataclass(frozen=True)
class LeftOut:
    """A module that is like a site but cannot be one.

    Attributes:
        path: Where it is.
        kind: What it is like.
        why: Why not.
    """

    path: str
    kind: str
    why: str


@dataclass(frozen=True)
class Survey:
    """All that was found.

    Attributes:
        subject: The model.
        model: The model on meta.
        call: The example call.
        structures: Its blocks.
        sites: What can be merged, in the order of execution.
        left_out: What cannot.
        outer: How the model's own forward can be traced: number of nodes, or why not.
        macs: Of each site in a call of size `size`, by path.
        total: Of the whole model.
        size: The size that MACs are counted at.
    """

    subject: Subject
    model: torch.nn.Module
    call: FoundCall
    structures: tuple[BlockStructure, ...]
    sites: tuple[FoundSite, ...]
    left_out: tuple[LeftOut, ...]
    outer: int | str
    macs: Mapping[str, Macs]
    total: Macs
    size: CallSizes

    @property
    def finest(self) -> Fraction:
        """Tokens for each position of the latent on the finest grid that has sites."""
        return max((site.tokens.image for site in self.sites), default=Fraction(1))

    @property
    def patch(self) -> int | None:
        """Edge of a token in the latent on the finest grid; None where it is no whole number."""
        inverse = 1 / (self.finest / self.frames)
        edge = isqrt(inverse.numerator)
        return edge if inverse.denominator == 1 and edge * edge == inverse.numerator else None

    @property
    def frames(self) -> int:
        """Frames of the latent in the example call, 1 for images."""
        return self.call.sizes.frames if any("frames" in a.shape for a in self.call.arguments.values()) else 1

    def level(self, site: FoundSite) -> int:
        """Side of a site's tokens over that of the finest."""
        return isqrt(int(self.finest / site.tokens.image))
