"""Lengths as equations, patterns of paths, and names of drafted sites."""

from __future__ import annotations

from fractions import Fraction

import pytest

from sdtm_fx.inspecting.arguments import CallSizes
from sdtm_fx.inspecting.lengths import Length, other_sizes, solve
from sdtm_fx.inspecting.patterns import pattern_for
from sdtm_fx.recipe.match import compile_match

SIZES = other_sizes(CallSizes(2, 7, 32, 16))


@pytest.mark.parametrize(
    ("length", "stream", "says"),
    [
        (lambda s: s.area // 4, "image", "N"),
        (lambda s: s.area // 4 + s.text + 8, "both", "N + T + 8"),
        (lambda s: s.area // 16, "image", "N/4"),
        (lambda s: s.text, "text", "T"),
        (lambda s: 226, "other", "226"),
    ],
)
def test_a_length_is_solved_from_four_calls(length, stream: str, says: str) -> None:  # type: ignore[no-untyped-def]
    found = solve(tuple(length(s) for s in SIZES), SIZES)
    assert found is not None
    assert (found.stream, found.says(Fraction(1, 4))) == (stream, says)
    assert [found.at(s) for s in SIZES] == [length(s) for s in SIZES]


@pytest.mark.parametrize("length", [lambda s: s.height, lambda s: s.area * s.text])
def test_what_follows_neither_has_no_equation(length) -> None:  # type: ignore[no-untyped-def]
    assert solve(tuple(length(s) for s in SIZES), SIZES) is None


def test_an_empty_length() -> None:
    assert Length().says() == "0"


EVERY = [
    f"{where}.{i}.{name}"
    for where, n in (("blocks", 3), ("single", 2))
    for i in range(n)
    for name in ("attn", "ff")
]


@pytest.mark.parametrize(
    ("wanted", "pattern"),
    [
        (["blocks.0.ff", "blocks.1.ff", "blocks.2.ff"], "blocks.*.ff"),
        (["blocks.0.ff", "blocks.2.ff"], r"re:blocks\.(0|2)\.ff"),
        (["blocks.1.attn", "single.0.attn", "single.1.attn"], r"re:(blocks\.1|single\.\d+)\.attn"),
        (["blocks.1.attn", "single.0.ff"], r"re:(blocks\.1\.attn|single\.0\.ff)"),
    ],
)
def test_a_pattern_means_exactly_what_is_wanted(wanted: list[str], pattern: str) -> None:
    assert pattern_for(wanted, EVERY) == pattern
    assert [p for p in EVERY if compile_match(pattern)(p)] == wanted


def test_numbers_that_belong_together_are_named_one_by_one() -> None:
    every = [f"a.{i}.b.{j}.ff" for i in range(2) for j in range(2)]
    pattern = pattern_for(["a.0.b.1.ff", "a.1.b.0.ff"], every)
    assert [p for p in every if compile_match(pattern)(p)] == ["a.0.b.1.ff", "a.1.b.0.ff"]
