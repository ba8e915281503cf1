"""What a recipe has to say for `token_cache`, and the key `reuse.update`."""

from __future__ import annotations

import re
from typing import Any

import jsonschema
import pytest

from sdtm_fx.errors import RecipeError
from sdtm_fx.methods import TokenCache
from sdtm_fx.recipe import Recipe, json_schema, load_recipe

TEXT = """\
version: 1
name: cached
model: [SD3Transformer2DModel]
tokens:
  grid: {latent: hidden_states, patch: 2}
sites:
  - {id: attn, kind: attention, match: "blocks.*.attn", input: hidden_states, output: 0}
  - {id: ff, kind: feed_forward, match: "blocks.*.ff"}
stages:
  - {name: all, until: 1.0, sites: [ff], method: {name: token_cache}}
ratio: {curve: constant, start: 0.7}
keep_dense: {every_steps: 3}
reuse: {order: 0, weight: 0, update: tokens}
"""


def changed(old: str, new: str) -> str:
    assert TEXT.count(old) == 1, old
    return TEXT.replace(old, new)


def test_it_loads_and_goes_round() -> None:
    recipe = Recipe.from_yaml_text(TEXT)
    assert recipe.stages[0].method == TokenCache()
    assert recipe.reuse is not None
    assert (recipe.reuse.weight, recipe.reuse.update) == (0.0, "tokens")
    assert Recipe.from_yaml_text(recipe.to_yaml()) == recipe
    assert jsonschema.Draft202012Validator(json_schema()).is_valid(recipe.to_data())


def test_what_is_stored_on_dense_steps_alone_is_the_default_and_keeps_the_fingerprint() -> None:
    plain = Recipe.from_yaml_text(changed(", update: tokens", ""))
    assert plain.reuse is not None
    assert plain.reuse.update == "dense"
    assert (
        Recipe.from_yaml_text(changed("update: tokens", "update: dense")).fingerprint() == plain.fingerprint()
    )
    assert Recipe.from_yaml_text(TEXT).fingerprint() != plain.fingerprint()
    shipped = load_recipe("sd3-medium-windows")
    assert shipped.override({"reuse.update": "dense"}).fingerprint() == shipped.fingerprint()
    assert shipped.override({"reuse.update": "tokens"}).fingerprint() != shipped.fingerprint()


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        (
            "reuse: {order: 0, weight: 0, update: tokens}\n",
            "",
            "cached.yaml:10: stages[0].method: found token_cache without reuse; accepted token_cache with a section "
            "reuse: {order: 0, weight: 0, update: tokens}, which is where the tokens that it leaves out come from",
        ),
        (
            "weight: 0,",
            "weight: 0.1,",
            "cached.yaml:13: reuse.weight: found 0.1 with method token_cache in stage 'all', which computes nothing "
            "for the tokens that it leaves out; accepted 0: there is no new value to weigh",
        ),
        (
            "update: tokens",
            "update: token",
            "cached.yaml:13: reuse.update: found 'token'; accepted 'dense' or 'tokens' (did you mean 'tokens'?)",
        ),
        (
            "update: tokens",
            "updte: tokens",
            "cached.yaml:13: reuse.updte: found an unknown key; accepted order, weight, update "
            "(did you mean 'update'?)",
        ),
        (
            "name: token_cache",
            "name: token_cahe",
            "(did you mean 'token_cache'?)",
        ),
        (
            "name: token_cache",
            "name: token_cache, intervall: 4",
            "cached.yaml:10: stages[0].method.intervall: found an unknown key; accepted name, rank, age_weight, "
            "interval, bonus, window, probe_queries (did you mean 'interval'?)",
        ),
        (
            "name: token_cache",
            "name: token_cache, rank: attenton",
            "cached.yaml:10: stages[0].method.rank: found 'attenton'; accepted 'attention' or 'random' "
            "(did you mean 'attention'?)",
        ),
        (
            "method: {name: token_cache}",
            "method: {name: token_cache}, reduce: mean",
            "cached.yaml:10: stages[0].reduce: found 'mean' for method token_cache in stage 'all'; accepted 'prune', "
            "or no reduce: tokens are computed alone",
        ),
        (
            "keep_dense:",
            'layers: [{match: "**.0", reduce: mlerp}]\nkeep_dense:',
            "cached.yaml:12: layers[0].reduce: found 'mlerp' in a recipe with method token_cache in stage 'all'; "
            "accepted 'prune', or no reduce",
        ),
        (
            "sites: [ff], method: {name: token_cache}",
            "sites: [attn, ff], method: {name: token_cache, rank: random}}\nplan: {proportional: true",
            "cached.yaml:11: plan.proportional: found true with method token_cache in stage 'all', which has no slots; "
            "accepted false there: a slot is one token",
        ),
        (
            "curve: constant, start: 0.7",
            "threshold: 0.7, start: 0.7",
            "cached.yaml:11: ratio: found a threshold for method token_cache; accepted a threshold only for methods",
        ),
    ],
)
def test_what_does_not_go_together_is_an_error_that_says_where(old: str, new: str, message: str) -> None:
    with pytest.raises(RecipeError, match=re.escape(message)):
        Recipe.from_yaml_text(changed(old, new), "cached.yaml")


def test_keys_are_not_stored() -> None:
    text = changed("output: 0}", "output: 0, merge: keys}")
    data: dict[str, Any] = {"stages.all.sites": ["attn", "ff"], "stages.all.method.rank": "random"}
    with pytest.raises(
        RecipeError,
        match=r"stages\[0\]\.sites: found 'attn', of which only keys are merged, with method token_cache in stage "
        r"'all', which takes outputs from a cache; accepted sites of whole tokens: keys are not stored",
    ):
        Recipe.from_yaml_text(text).override(data)


def test_what_prunes_may_say_so() -> None:
    assert Recipe.from_yaml_text(TEXT).override({"stages.all.reduce": "prune"}).stages[0].reduce == "prune"
