"""Attention modules that passes open: each once, changed by several passes, called as a graph in the end."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

from torch import fx

from sdtm_fx.rewriting.attention import AttentionGraph, carries, image_span, open_attention
from sdtm_fx.rewriting.placeholders import first_placeholder
from sdtm_fx.runtime import mask_ops
from sdtm_fx.sites.locating import Site

if TYPE_CHECKING:
    from sdtm_fx.rewriting.work import BlockWork


@dataclass
class OpenedSite:
    """One attention module of a block while passes change what it computes.

    Attributes:
        site: The site.
        attention: Its graph.
        context: Placeholder of the `BlockContext`.
        before: Placeholder of the number of tokens in front of the image, in the input of the site.
        behind: Placeholder of the number of tokens behind it.
        plan: Placeholder of the merge plan over image tokens.
        key: The keys that the operation gets; a pass may have made fewer of them.
        start: Where the image starts among them, a node or an integer.
        length: How many of them are image, a node.
        outer_plan: What the block graph passes for `plan`; None: nothing reads it.
        scored: The plan in the block graph that reads the second output; None: there is one output.
        reads: What that plan calls it.
    """

    site: Site
    attention: AttentionGraph
    context: fx.Node
    before: fx.Node
    behind: fx.Node
    plan: fx.Node
    key: fx.Node
    start: Any
    length: Any
    outer_plan: fx.Node | None = None
    scored: fx.Node | None = None
    reads: Literal["attention", "heads"] = "attention"

    @property
    def where(self) -> str:
        """The site, for messages."""
        return f"site {self.site.spec.id!r}"

    @property
    def axis(self) -> int:
        """The axis of the sequence in queries, keys and values."""
        return self.attention.sequence

    @property
    def mask(self) -> fx.Node | None:
        """The mask that the operation gets: the module's own, or what passes have made of it."""
        operation = self.attention.operation
        found = operation.args[3] if len(operation.args) > 3 else operation.kwargs.get("attn_mask")
        return found if isinstance(found, fx.Node) else None

    def use_mask(self, mask: fx.Node) -> None:
        """Let the operation get another mask."""
        operation = self.attention.operation
        if len(operation.args) > 3:
            operation.update_arg(3, mask)
        else:
            operation.update_kwarg("attn_mask", mask)

    def add_bias(self, bias: fx.Node) -> None:
        """Add a bias over the keys to the logits, beside the module's own mask and what other passes add."""
        if self.mask is not None:
            with self.attention.graph.inserting_before(self.attention.operation):
                bias = self.attention.graph.call_function(mask_ops.add_bias, (self.mask, bias))
        self.use_mask(bias)


def open_site(work: BlockWork, site: Site) -> OpenedSite:
    """Open the attention module of a site, or return it where another pass has opened it.

    Raises:
        SiteError: The module does not hold exactly one attention operation.
    """
    if site.spec.id not in work.opened:
        module = work.block.get_submodule(site.local)
        attention = open_attention(site.node, module, site.slot, f"site {site.spec.id!r}")
        graph = attention.graph
        # The last comes first: (ctx, before, behind, plan, ...).
        names = ("plan", "behind", "before", "ctx")
        plan, behind, before, context = (first_placeholder(graph, name) for name in names)
        tokens = work.recipe.tokens
        stands_before = site.spec.prefix is not None or tokens.protect.first_frames
        stands_behind = site.spec.suffix is not None or tokens.has_references
        start, length = image_span(
            attention, before if stands_before else None, behind if stands_behind else None
        )
        work.opened[site.spec.id] = OpenedSite(
            site, attention, context, before, behind, plan, attention.key, start, length
        )
    return work.opened[site.spec.id]


def reads_image(opened: OpenedSite) -> bool:
    """Whether the keys are those of the site's own tokens, and not of a text beside them (cross-attention)."""
    return carries(opened.attention.key, opened.attention.entry)


def is_causal(operation: fx.Node) -> bool:
    """Whether an attention operation looks at keys in front of each query only."""
    position = operation.args[5] if len(operation.args) > 5 else False
    found = operation.kwargs.get("is_causal", position)
    return bool(found) if not isinstance(found, fx.Node) else bool(found.meta.get("val"))
