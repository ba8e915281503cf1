"""The keys that let blocks differ: `layers`, and `reduce` of a stage, and `metric` of a site."""

from __future__ import annotations

from collections.abc import Callable

import jsonschema
import pytest

from sdtm_fx.errors import RecipeError
from sdtm_fx.methods import ToFu
from sdtm_fx.recipe import Recipe, json_schema

ErrorOf = Callable[[str, str], str]

LAYERS = """
layers:
  - {match: "blocks.0", scale: 0}
  - {match: "re:blocks\\\\.(2|6)", scale: 0.5, reduce: prune}
"""


def test_they_load_and_come_back(example: Recipe, example_text: str) -> None:
    recipe = Recipe.from_yaml_text(example_text + LAYERS)
    assert [(rule.match, rule.scale, rule.reduce) for rule in recipe.layers] == [
        ("blocks.0", 0.0, None),
        (r"re:blocks\.(2|6)", 0.5, "prune"),
    ]
    changed = recipe.override({"stages.structure.reduce": "mlerp", "sites.attn.metric": "hidden_states"})
    assert (changed.stages[0].reduce, changed.sites[0].metric) == ("mlerp", "hidden_states")
    assert Recipe.from_yaml_text(changed.to_yaml()) == changed
    assert jsonschema.Draft202012Validator(json_schema()).is_valid(changed.to_data())
    assert len({r.fingerprint() for r in (example, recipe, changed)}) == 3


def test_recipes_that_say_nothing_keep_their_fingerprint(example: Recipe, example_text: str) -> None:
    for more in ("layers: []", ""):
        assert Recipe.from_yaml_text(f"{example_text}\n{more}\n").fingerprint() == example.fingerprint()
    spelled = example.override({"layers": [], "stages.*.reduce": None, "sites.*.metric": None})
    assert spelled.fingerprint() == example.fingerprint()
    for change in (
        {"layers": [{"match": "blocks.1", "scale": 1.0}]},
        {"stages.detail.reduce": "mean"},
        {"sites.ff.metric": "x"},
    ):
        assert example.override(change).fingerprint() != example.fingerprint()


def test_a_method_has_a_reduction_of_its_own(example: Recipe) -> None:
    recipe = example.override(
        {"stages.detail.method": {"name": "tofu", "reduce": "prune"}, "stages.detail.ratio": None}
    )
    assert recipe.stages[1].method == ToFu(reduce="prune")
    assert recipe.stages[1].reduce is None


@pytest.mark.parametrize(
    ("layers", "message"),
    [
        ("[{match: a}]", r"layers\[0\]: found a rule that changes nothing; accepted scale, reduce, or both"),
        ("[{match: a, scale: 1.5}]", r"layers\[0\]\.scale: found 1\.5; accepted a number from 0 to 1"),
        ("[{match: a, scal: 1}]", r"layers\[0\]\.scal: found an unknown key; .*did you mean 'scale'"),
        ("[{match: a, reduce: prun}]", r"layers\[0\]\.reduce: found 'prun'; .*did you mean 'prune'"),
        ("[{match: 're:(', scale: 0}]", r"layers\[0\]\.match: found a broken regular expression"),
        ("[{scale: 0}]", r"layers\[0\]\.match: found nothing; accepted"),
    ],
)
def test_rules_that_cannot_be(example_text: str, layers: str, message: str) -> None:
    with pytest.raises(RecipeError, match=message):
        Recipe.from_yaml_text(f"{example_text}\nlayers: {layers}\n")


def test_a_part_of_a_skipped_site_is_an_error(example: Recipe) -> None:
    skip = {"stages.detail.method": {"name": "skip"}, "stages.detail.ratio": None}
    with pytest.raises(
        RecipeError, match=r"scale: found 0\.5 in a recipe with a stage that skips; accepted 0 or 1"
    ):
        example.override({**skip, "layers": [{"match": "a", "scale": 0.5}]})
    assert example.override({**skip, "layers": [{"match": "a", "scale": 0.0}]}).layers[0].scale == 0
    with pytest.raises(RecipeError, match=r"reduce: found 'mean' for method skip; accepted no reduce"):
        example.override({**skip, "stages.detail.reduce": "mean"})


def test_importance_needs_a_step_before_it(example: Recipe) -> None:
    change = {"stages.structure.method": {"name": "importance"}, "reuse": None}
    recipe = example.override({**change, "keep_dense": {"every_steps": 3, "first_steps": 0}})
    assert recipe.wants("importance"), "every_steps counts from the first step"
    assert recipe.reads_halves
    with pytest.raises(
        RecipeError,
        match=r"keep_dense\.first_steps: found 0 with method importance, which reads the output of the step "
        r"before; accepted 1 or more",
    ):
        example.override({**change, "keep_dense": {"every_steps": None, "first_steps": 0}})


def test_a_threshold_for_ca_tome(example: Recipe) -> None:
    threshold = {"threshold": 0.7, "start": 0.75}
    recipe = example.override({"stages.detail": {"method": {"name": "ca_tome"}, "ratio": threshold}})
    assert recipe.stages[1].method.name == "ca_tome"
    with pytest.raises(RecipeError, match=r"a threshold for method tome; accepted .*: ssm, ca_tome"):
        example.override({"stages.detail": {"method": {"name": "tome"}, "ratio": threshold}})
