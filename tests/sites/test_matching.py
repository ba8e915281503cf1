"""From the sites of a recipe to modules: paths, blocks, and every way to miss."""

from __future__ import annotations

from typing import Any

import pytest
from torch import nn

from sdtm_fx.errors import NothingMatched, SiteError
from sdtm_fx.recipe.sections import SiteSpec
from sdtm_fx.sites.matching import SiteModule, block_of, match_sites
from tests.passes.blocks import GatedBlock


class Nested(nn.Module):
    """Lists inside lists, a Sequential of blocks, and a block in no list."""

    def __init__(self) -> None:
        super().__init__()
        self.blocks = nn.ModuleList([GatedBlock(), GatedBlock()])
        self.down = nn.ModuleList([nn.ModuleDict({"inner": nn.ModuleList([GatedBlock()])})])
        self.chain = nn.Sequential(GatedBlock())
        self.middle = GatedBlock()
        self.ff = nn.Linear(2, 2)


def spec(match: str, id_: str = "site", **more: Any) -> SiteSpec:
    return SiteSpec(id=id_, kind="feed_forward", match=match, **more)


@pytest.mark.parametrize(
    ("path", "block"),
    [
        ("blocks.1.ff", "blocks.1"),
        ("blocks.1.ff.net.0", "blocks.1"),  # `net` is a list, but only lists above the module itself count
        ("down.0.inner.0.attn", "down.0.inner.0"),
        ("down.0.inner.0", "down.0"),  # the module itself is no block of its own
        ("chain.0.attn.qkv", "chain.0"),
        ("middle.ff", "middle"),
        ("middle.ff.net", "middle.ff"),
        ("ff", ""),
    ],
)
def test_the_block_is_the_nearest_entry_of_a_list_above(path: str, block: str) -> None:
    assert block_of(Nested(), path) == block


def test_matches_come_in_the_order_of_the_recipe_and_then_of_the_model() -> None:
    found = match_sites(Nested(), [spec("blocks.*.ff", "b"), spec("**.attn", "a")])
    assert [(m.spec.id, m.path, m.block, m.local) for m in found] == [
        ("b", "blocks.0.ff", "blocks.0", "ff"),
        ("b", "blocks.1.ff", "blocks.1", "ff"),
        ("a", "blocks.0.attn", "blocks.0", "attn"),
        ("a", "blocks.1.attn", "blocks.1", "attn"),
        ("a", "down.0.inner.0.attn", "down.0.inner.0", "attn"),
        ("a", "chain.0.attn", "chain.0", "attn"),
        ("a", "middle.attn", "middle", "attn"),
    ]


def test_regular_expressions_match_whole_paths() -> None:
    found = match_sites(Nested(), [spec(r"re:blocks\.[01]\.ff", expect=2)])
    assert [m.path for m in found] == ["blocks.0.ff", "blocks.1.ff"]


def test_local_paths_are_relative_to_the_block() -> None:
    assert SiteModule(spec("x"), "blocks.1.ff", "blocks.1").local == "ff"
    assert SiteModule(spec("x"), "ff", "").local == "ff"


def test_matching_changes_nothing() -> None:
    model = Nested()
    before = {name: dict(m.__dict__) for name, m in model.named_modules()}
    match_sites(model, [spec("blocks.*.ff")])
    assert {name: dict(m.__dict__) for name, m in model.named_modules()} == before


def test_a_pattern_without_a_match_lists_near_misses() -> None:
    with pytest.raises(
        NothingMatched,
        match=r"site 'site': 'block\.\*\.ff' matches no module of Nested; nearest: blocks\.0\.ff, ",
    ):
        match_sites(Nested(), [spec("block.*.ff")])


def test_a_pattern_that_resembles_nothing_says_so() -> None:
    with pytest.raises(NothingMatched, match="nearest: none"):
        match_sites(Nested(), [spec("zzzzzzzzzzzzzzzzzzzz")])


def test_another_number_than_expected_is_an_error() -> None:
    with pytest.raises(
        NothingMatched,
        match=r"site 'site': 'blocks\.\*\.ff' matches 2 modules of Nested, the recipe expects 24 "
        r"\(first: blocks\.0\.ff, last: blocks\.1\.ff\)",
    ):
        match_sites(Nested(), [spec("blocks.*.ff", expect=24)])


@pytest.mark.parametrize(
    ("first", "second"),
    [("blocks.*.ff", "**.ff"), ("blocks.*.ff", "blocks.*.ff.net"), ("blocks.*.ff.net", "blocks.*.ff")],
)
def test_sites_may_not_overlap(first: str, second: str) -> None:
    with pytest.raises(
        SiteError, match=r"sites 'a' and 'b' overlap: .*; a module may belong to one site only"
    ):
        match_sites(Nested(), [spec(first, "a"), spec(second, "b")])


def test_a_module_of_the_model_itself_is_in_no_block() -> None:
    with pytest.raises(SiteError, match="site 'site': ff is called by Nested itself; a site lies in a block"):
        match_sites(Nested(), [spec("ff")])
