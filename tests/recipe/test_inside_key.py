"""`inside` of a stage: what it may say, and what it demands of the rest."""

from __future__ import annotations

from typing import Any

import pytest

from sdtm_fx.errors import RecipeError
from sdtm_fx.recipe import Recipe, load_recipe

INSIDE: dict[str, Any] = {"sites": ["ff"], "method": {"name": "tome", "window": [1, 2]}, "ratio": 0.3}
PLAIN: dict[str, Any] = {
    "version": 1,
    "name": "stacked",
    "extends": "sd3-medium-merge",
    "spans": [{"id": "body", "first": 4, "last": -1, "output": 1}],
    "stages": {"*": {"sites": ["body"], "inside": INSIDE}},
    "reuse": None,
}


def changed(inside: dict[str, Any] | None = None, **sections: Any) -> Recipe:
    stages = {"*": {"sites": ["body"], "inside": {**INSIDE, **(inside or {})}}}
    return Recipe.from_mapping({**PLAIN, "stages": stages, **sections})


def test_it_is_read_and_written() -> None:
    recipe = changed()
    inside = recipe.stages[0].inside
    assert inside is not None
    assert (inside.sites, inside.method.name, inside.ratio, inside.reduce) == (("ff",), "tome", 0.3, None)
    assert Recipe.from_yaml_text(recipe.to_yaml()) == recipe
    assert recipe.override({"stages.detail.inside.ratio": 0.1}).stages[-1].inside.ratio == 0.1  # type: ignore[union-attr]
    assert recipe.override({"stages.*.inside": None}).fingerprint() != recipe.fingerprint()


def test_recipes_without_it_keep_their_hash() -> None:
    recipe = load_recipe("sd3-medium-windows")
    assert recipe.to_data()["stages"][0]["inside"] is None
    assert recipe.override({"stages.*.inside": None}).fingerprint() == recipe.fingerprint()


@pytest.mark.parametrize(
    "method",
    [
        {"name": "random"},
        *({"name": name, "window": [1, 3]} for name in ("tome", "tofu", "ca_tome", "sito")),
        {"name": "fidm", "window": [1, 3], "target": "first"},
    ],
    ids=lambda method: method["name"],
)
def test_methods_that_need_no_grid_are_taken(method: dict[str, Any]) -> None:
    assert changed({"method": method}).stages[0].inside.method.name == method["name"]  # type: ignore[union-attr]


GRIDLESS = r"; accepted random, or tome, tofu, ca_tome, sito or fidm with window \[1, n\]: every n slots in their order"
END = f" on it{GRIDLESS}"
NONE = f"slots have none{GRIDLESS}"


@pytest.mark.parametrize(
    ("inside", "sections", "message"),
    [
        (
            {"method": {"name": "tome"}},
            {},
            f"found tome inside .* there is no grid: its cells are 2 x 2 tokens of it{GRIDLESS}",
        ),
        (
            {"method": {"name": "sito"}},
            {},
            f"found sito inside .* its cells are 2 x 2 tokens of it{GRIDLESS}",
        ),
        *(
            (
                {"method": {"name": name}},
                {},
                f"found {name} inside .* no grid: the method goes by where tokens lie{END}",
            )
            for name in ("uniform", "todo")
        ),
        (
            {"method": {"name": "ssm", "age_weight": 0.0}},
            {},
            rf"stages\[0\].inside.method: found ssm inside .* goes by where tokens lie on it{GRIDLESS}",
        ),
        *(
            (
                {"method": {"name": name}},
                {},
                f"found {name} inside of a span, which reads {what} of tokens; {NONE}",
            )
            for name, what in (
                ("ssm", "ages"),
                ("fidm", "ages"),
                ("idm", "ages, attention"),
                ("at_edm", "heads"),
                ("importance", "importance"),
            )
        ),
        (
            {"method": {"name": "toma"}},
            {},
            f"found toma inside of a span, which mixes slots: .* weights there{GRIDLESS}",
        ),
        (
            {"method": {"name": "token_cache"}},
            {},
            f"found token_cache inside of a span, where nothing is stored{GRIDLESS}",
        ),
        (
            {},
            {"sites": {"ff": {"downsample": 2}}},
            "beside site 'ff', whose tokens lie on a grid of their own; accepted sites with downsample 1",
        ),
        ({"method": {"name": "skip"}}, {}, f"found skip inside of a span, which merges nothing{GRIDLESS}"),
        (
            {"sites": ["fff"]},
            {},
            r"found the unknown site 'fff'; accepted 'attn' or 'ff' \(did you mean 'ff'",
        ),
        ({"sites": ["body"]}, {}, "found the span 'body'; accepted sites: spans do not lie inside of spans"),
        ({"sites": ["ff", "ff"]}, {}, "found 'ff' a second time; accepted each site once"),
        (
            {"ratio": 0.6},
            {},
            "inside.ratio: found a ratio of 0.6; accepted at most 0.5, which is what tome can remove",
        ),
        ({"ratio": 1.0}, {}, "inside.ratio: found 1"),
        (
            {},
            {"plan": {"every_steps": 2}},
            "plan.every_steps: found plans that are kept over steps beside inside",
        ),
        (
            {},
            {"stages": {"*": {"sites": ["ff"], "inside": INSIDE}}},
            "in stage 'structure', which has none among its sites; accepted inside beside a span",
        ),
        (
            {},
            {"stages": {"*": {"sites": ["body"], "inside": INSIDE, "method": {"name": "toma"}}}},
            "found merging inside of spans whose method toma mixes slots; accepted a method of the stage under which",
        ),
    ],
)
def test_what_it_demands(inside: dict[str, Any], sections: dict[str, Any], message: str) -> None:
    with pytest.raises(RecipeError, match=message):
        changed(inside, **sections)


@pytest.mark.parametrize(
    "inside",
    [{"reduce": "mlerp"}, {"method": {"name": "tofu", "window": [1, 2]}}],
    ids=["said", "by the method"],
)
def test_keys_have_no_length_to_keep(inside: dict[str, Any]) -> None:
    keys = {"sites": {"attn": {"merge": "keys"}}}
    with pytest.raises(
        RecipeError,
        match=r"inside.reduce: found 'mlerp' at 'attn', of which only keys are merged, head by head",
    ):
        changed({"sites": ["attn"], **inside}, **keys)
    assert changed({"sites": ["attn"], **inside, "reduce": "mean"}, **keys).stages[0].inside is not None


def test_proportional_attention_beside_spans_needs_sizes() -> None:
    assert changed(plan={"proportional": True}).plan.proportional
    toma = {"*": {"sites": ["body"], "method": {"name": "toma"}}}
    with pytest.raises(
        RecipeError, match=r"plan.proportional: found true with method toma .* which mixes slots"
    ):
        changed(stages=toma, plan={"proportional": True})
