"""Spans in recipes: what they may say, and what they demand of the rest."""

from __future__ import annotations

from typing import Any

import pytest

from sdtm_fx.errors import RecipeError
from sdtm_fx.recipe import Recipe, load_recipe
from sdtm_fx.recipe.span import SpanSpec

SPAN = {"id": "body", "first": 4, "last": -1, "output": 1}
PLAIN: dict[str, Any] = {
    "version": 1,
    "name": "spanned",
    "extends": "sd3-medium-merge",
    "spans": [SPAN],
    "stages": {"*": {"sites": ["body"]}},
    "reuse": None,
}


def changed(**sections: Any) -> Recipe:
    return Recipe.from_mapping({**PLAIN, **sections})


def test_a_span_is_read_and_written() -> None:
    recipe = changed()
    assert recipe.spans == (SpanSpec(id="body", first=4, last=-1, output=1),)
    assert (recipe.spans[0].enter, recipe.spans[0].residual, recipe.spans[0].input) == (
        "start",
        "dense",
        "hidden_states",
    )
    assert Recipe.from_yaml_text(recipe.to_yaml()) == recipe
    other = recipe.override({"spans.body.residual": "merged"})
    assert other.spans[0].residual == "merged"
    assert other.fingerprint() != recipe.fingerprint()


def test_recipes_without_spans_keep_their_hash() -> None:
    recipe = load_recipe("sd3-medium-windows")
    assert "spans" in recipe.to_data()
    assert recipe.override(spans=[]).fingerprint() == recipe.fingerprint()
    assert recipe.override(spans=[SPAN]).fingerprint() != recipe.fingerprint()


@pytest.mark.parametrize(
    ("sections", "message"),
    [
        (
            {"spans": [{**SPAN, "enter": "begin"}]},
            r"spans\[0\].enter: found 'begin'; accepted 'start' or 'end'",
        ),
        ({"spans": [{**SPAN, "first": "re:("}]}, r"spans\[0\].first: found a broken regular expression"),
        (
            {"spans": [{**SPAN, "from": 1}]},
            r"spans\[0\].from: found an unknown key; accepted .*first, last, enter",
        ),
        ({"spans": [SPAN, SPAN]}, r"spans\[1\].id: found 'body' a second time"),
        (
            {"spans": [{**SPAN, "id": "attn"}], "stages": {}},
            r"spans\[0\].id: found 'attn' a second time; accepted a different id for each site and span",
        ),
        (
            {"stages": {"*": {"sites": ["bodi"]}}},
            r"sites\[0\]: found the unknown site 'bodi'; accepted 'attn', 'ff' or 'body' \(did you mean 'body'\?\)",
        ),
        (
            {"reuse": {"order": 1, "weight": 0.1}},
            "reuse: found forecasts beside spans that merge; accepted no reuse",
        ),
        (
            {
                "spans": [{**SPAN, "enter": "end"}],
                "stages": {"*": {"sites": ["body"], "method": {"name": "skip"}}},
                "reuse": {"order": 1, "weight": 0.0},
            },
            "found the span 'body', which begins behind its first block, with method skip; accepted a span with enter "
            "'start'",
        ),
        (
            {"stages": {"*": {"sites": ["body"]}, "detail": {"method": {"name": "at_edm"}}}},
            "found the span 'body', which begins in front of the attention that method at_edm reads; accepted a span "
            "with enter 'end'",
        ),
        (
            {"stages": {"*": {"sites": ["body"]}, "structure": {"ratio": {"threshold": 0.2, "start": 0.5}}}},
            "found the span 'body' with a threshold; accepted a ratio",
        ),
        (
            {"spans": [{**SPAN, "rotary": "tables"}]},
            "found 'body', whose rotary tables have no batch axis, with a plan per sample; accepted plan.share",
        ),
    ],
)
def test_what_spans_demand(sections: dict[str, Any], message: str) -> None:
    with pytest.raises(RecipeError, match=message):
        changed(**sections)
