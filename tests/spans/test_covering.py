"""Which blocks the spans of a recipe cover, from their paths alone."""

from __future__ import annotations

from typing import Any

import pytest

from sdtm_fx.errors import NothingMatched
from sdtm_fx.recipe import Recipe, load_recipe
from sdtm_fx.rewriting.span_ends import covering_stages

ORDER = [f"transformer_blocks.{number}" for number in range(4)]


def recipe(*stages: dict[str, Any], **span: Any) -> Recipe:
    ends = [{**stage, "name": f"s{n}", "until": (n + 1) / len(stages)} for n, stage in enumerate(stages)]
    return load_recipe("sd3-medium").override(spans=[{"id": "blocks", "output": 1, **span}], stages=ends)


SKIP = {"sites": ["blocks"], "method": {"name": "skip"}}


@pytest.mark.parametrize(
    ("stages", "span", "covered"),
    [
        ([SKIP], {"first": 0, "last": -1}, {path: ("s0",) for path in ORDER}),
        ([SKIP], {"first": 1, "last": 2}, {ORDER[1]: ("s0",), ORDER[2]: ("s0",)}),
        ([SKIP, SKIP], {"first": -1, "last": -1}, {ORDER[3]: ("s0", "s1")}),
        ([{**SKIP, "sites": ["attn"]}, SKIP], {"first": 3, "last": 3}, {ORDER[3]: ("s1",)}),
        ([{**SKIP, "sites": ["attn"]}], {"first": 0, "last": -1}, {}),
        (
            [SKIP],
            {"first": "re:transformer_blocks\\.[02]", "last": "re:transformer_blocks\\.[02]"},
            {ORDER[0]: ("s0",), ORDER[2]: ("s0",)},
        ),
    ],
)
def test_blocks_are_covered(
    stages: list[dict[str, Any]], span: dict[str, Any], covered: dict[str, Any]
) -> None:
    assert covering_stages(recipe(*stages, **span), ORDER) == covered


def test_a_block_that_is_not_there() -> None:
    with pytest.raises(NothingMatched, match="`last`: there is no block 9; the model has 4"):
        covering_stages(recipe(SKIP, first=0, last=9), ORDER)
