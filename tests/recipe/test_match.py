from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sdtm_fx.recipe import compile_match, near_misses


@pytest.mark.parametrize(
    ("pattern", "path", "expected"),
    [
        ("transformer_blocks.*.attn", "transformer_blocks.0.attn", True),
        ("transformer_blocks.*.attn", "transformer_blocks.12.attn", True),
        ("transformer_blocks.*.attn", "transformer_blocks.0.attn2", False),
        ("transformer_blocks.*.attn", "single_transformer_blocks.0.attn", False),
        ("transformer_blocks.*.attn", "transformer_blocks.0.norm.attn", False),
        ("transformer_blocks.*.attn*", "transformer_blocks.0.attn2", True),
        ("**.attn", "model.transformer_blocks.0.attn", True),
        ("**.attn", "attn", False),
        ("**attn", "attn", True),
        ("a+b.(c)", "a+b.(c)", True),
        ("a.b", "axb", False),
        ("re:blocks\\.(0|1)\\.ff", "blocks.1.ff", True),
        ("re:blocks\\.(0|1)\\.ff", "blocks.10.ff", False),
        ("re:blocks", "blocks.0", False),
    ],
)
def test_examples(pattern: str, path: str, expected: bool) -> None:
    assert compile_match(pattern)(path) is expected


def brute_force(glob: str, path: str) -> bool:
    """Say whether a glob means a path, by trying every length that each star could have."""
    if not glob:
        return not path
    if glob.startswith("**"):
        return any(brute_force(glob[2:], path[length:]) for length in range(len(path) + 1))
    if glob.startswith("*"):
        tails = [path[length:] for length in range(len(path) + 1) if "." not in path[:length]]
        return any(brute_force(glob[1:], tail) for tail in tails)
    return bool(path) and glob[0] == path[0] and brute_force(glob[1:], path[1:])


@given(glob=st.text("ab.**", min_size=1, max_size=8), path=st.text("ab.", max_size=8))
@settings(max_examples=400, deadline=None)
def test_globs_agree_with_brute_force(glob: str, path: str) -> None:
    assert compile_match(glob)(path) is brute_force(glob, path)


@given(
    path=st.text(min_size=1, max_size=12).filter(lambda text: "*" not in text and not text.startswith("re:"))
)
@settings(max_examples=100, deadline=None)
def test_text_without_stars_means_itself_alone(path: str) -> None:
    matches = compile_match(path)
    assert matches(path)
    assert not matches(path + "x")
    assert not matches("")


@pytest.mark.parametrize(
    ("pattern", "message"),
    [("", "an empty pattern"), ("re:", "an empty pattern"), ("re:(", "a broken regular expression")],
)
def test_broken_patterns(pattern: str, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        compile_match(pattern)


PATHS = [
    "",
    "pos_embed",
    *(
        f"transformer_blocks.{block}{name}"
        for block in range(12)
        for name in ("", ".attn", ".ff", ".ff.net.0")
    ),
    "norm_out.linear",
]


def test_near_misses_are_the_alike_ones_one_per_block_kind() -> None:
    assert near_misses("transformer_block.*.attn", PATHS)[0] == "transformer_blocks.0.attn"
    assert near_misses("blocks.*.ff", PATHS)[0] == "transformer_blocks.0.ff"
    assert near_misses("re:transformer_blocks\\.\\d+\\.atn", PATHS)[0] == "transformer_blocks.0.attn"
    assert len(near_misses("transformer_blocks.*.att", PATHS)) <= 5


def test_near_misses_leave_out_matches_and_strangers() -> None:
    assert "transformer_blocks.0.attn" not in near_misses("transformer_blocks.*.attn", PATHS)
    assert near_misses("zzz", PATHS) == []
