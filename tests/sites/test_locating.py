"""Where a site stands in its block's graph, and why something is no site."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn

from sdtm_fx.errors import SiteError
from sdtm_fx.recipe.sections import SiteSpec
from sdtm_fx.sites.locating import Site, locate
from tests.capture.tracing import trace
from tests.passes.blocks import (
    CrossBlock,
    DualBlock,
    FeedForward,
    GatedBlock,
    ParallelBlock,
    condition,
    image,
    text,
)


def find(block: nn.Module, args: tuple[Any, ...], local: str, **fields: Any) -> Site:
    kind = fields.pop("kind", "feed_forward")
    spec = SiteSpec(id="site", kind=kind, match=local, **fields)
    return locate(trace(block, *args).graph, block, spec, local, f"blocks.7.{local}")


X, T, C = image(), text(), condition()


def test_a_feed_forward_between_norm_and_gate() -> None:
    site = find(GatedBlock(), (X, C), "ff")
    assert site.node.target == "ff"
    assert site.slot == 0
    assert site.entry is site.node.args[0]
    assert site.exit is site.node
    assert site.side == ()


def test_joint_attention_has_a_text_side() -> None:
    site = find(DualBlock(), (X, T, C), "attn", kind="attention", input="hidden_states", output=0)
    assert site.slot == "hidden_states"
    assert site.entry.meta["val"].shape == X.shape
    assert site.exit.meta["val"].shape == X.shape
    assert [s.meta["val"].shape for s in site.side] == [T.shape]


def test_an_argument_is_found_by_position_name_or_keyword() -> None:
    by_place = find(CrossBlock(), (X, T, C), "attn2", kind="attention", input=0)
    by_name = find(CrossBlock(), (X, T, C), "attn2", kind="attention", input="hidden_states")
    assert by_place.slot == by_name.slot == 0
    keyword = find(DualBlock(), (X, T, C), "attn", kind="attention", input=0, output=0)
    assert keyword.slot == "hidden_states"


def test_the_parallel_blocks_residual_is_behind_the_projection() -> None:
    for local in ("attn", "proj_mlp"):
        site = find(ParallelBlock(), (X, T, C), local)
        assert site.entry.meta["val"].shape[1] == X.shape[1] + T.shape[1]


@pytest.mark.parametrize(
    ("local", "fields", "message"),
    [
        (
            "attn",
            {"input": "contxt"},
            r"Attention has no argument 'contxt'; it has .* \(did you mean 'context'\?\)",
        ),
        ("ff", {"input": "hidden"}, "FeedForward has no argument 'hidden'; it has x$"),
        ("attn", {"input": "context"}, "the block does not pass argument 'context'"),
        ("attn", {"input": 5}, "the block does not pass argument 5"),
        (
            "norm1.norm",
            {},
            "the block calls it 0 times, a site is called once; it calls attn, ff, norm1, norm2",
        ),
        ("norm1", {"input": "temb"}, r"input 'temb' is not a \[batch, tokens, width\] tensor"),
        ("norm1", {}, "it returns a tuple of 2; say which with `output`"),
        ("norm1", {"output": 2}, r"output 2 is not taken by the block; it takes 0, 1"),
        ("norm1", {"output": 1}, r"tokens go in as \[2, 24, 8\] and come out as \[2, 1, 8\]; a site keeps"),
        ("ff", {"output": 0}, r"output 0 is not taken by the block; it takes none"),
    ],
)
def test_what_is_no_site_is_said(local: str, fields: dict[str, Any], message: str) -> None:
    with pytest.raises(SiteError, match=rf"site 'site' at blocks\.7\.{local}: .*({message})"):
        find(GatedBlock(), (X, C), local, **fields)


class NoResidual(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.ff = FeedForward()

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.ff(x) * 2


class Twice(NoResidual):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x + self.ff(self.ff(x))


class Reshaped(NoResidual):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x + self.ff(x.flatten(0, 1)).unflatten(0, x.shape[:2])


def test_a_site_ends_in_a_residual_addition() -> None:
    with pytest.raises(SiteError, match="its output does not end in one residual addition"):
        find(NoResidual(), (X,), "ff")


def test_a_site_is_called_once() -> None:
    with pytest.raises(SiteError, match="the block calls it 2 times, a site is called once; it calls ff"):
        find(Twice(), (X,), "ff")


class Apart(NoResidual):
    """One feed-forward for two streams."""

    def forward(self, text: torch.Tensor, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        return text + self.ff(text), x + self.ff(x)


def test_the_call_that_is_meant_may_be_said() -> None:
    text = X[:, :5]
    for call, length in ((0, text.shape[1]), (1, X.shape[1])):
        site = find(Apart(), (text, X), "ff", call=call)
        assert site.entry.meta["val"].shape[1] == length
    with pytest.raises(
        SiteError, match=r"calls it 2 times, a site is called once; .*`call: 0` to `call: 1` says which"
    ):
        find(Apart(), (text, X), "ff")
    with pytest.raises(SiteError, match="the block calls it 2 times, call 2 is none of them; it calls ff"):
        find(Apart(), (text, X), "ff", call=2)
    with pytest.raises(SiteError, match="the block calls it 1 times, call 1 is none of them"):
        find(GatedBlock(), (X, C), "ff", call=1)


def test_a_site_works_on_sequences() -> None:
    with pytest.raises(SiteError, match=r"input 0 is not a \[batch, tokens, width\] tensor"):
        find(Reshaped(), (X,), "ff")
