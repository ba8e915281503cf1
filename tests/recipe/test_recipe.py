"""The recipe as an object: values, defaults, copies with changes, YAML and fingerprint."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import ValidationError

from sdtm_fx.errors import RecipeError
from sdtm_fx.methods import IDM, SSM
from sdtm_fx.recipe import (
    ConstantRatio,
    InputSpec,
    KeepDense,
    LatentGrid,
    ListRatio,
    PlanSharing,
    Recipe,
    ThresholdRatio,
    load_recipe,
    peak,
)
from sdtm_fx.recipe.yaml_source import read_yaml


def test_fields_and_defaults(example: Recipe) -> None:
    assert example.tokens.grid == LatentGrid(latent="hidden_states", patch=2)
    assert example.inputs == {
        "hidden_states": InputSpec(shape=("batch", "in_channels", "height", "width")),
        "guidance": InputSpec(shape=("batch",), when="guidance_embeds"),
    }
    attn, ff = example.sites
    assert (attn.input, attn.output, attn.expect) == ("hidden_states", 0, None)
    assert (ff.input, ff.output, ff.expect) == (0, None, 24)
    assert [stage.method for stage in example.stages] == [SSM(window=(2, 2)), IDM()]
    assert (example.stages[0].ratio, example.stages[1].ratio) == (
        None,
        ConstantRatio(curve="constant", start=0.8),
    )
    assert example.keep_dense == KeepDense(
        first_steps=1, last_steps=1, every_steps=3, layers=(0, -1, "blocks.1*")
    )
    assert example.plan == PlanSharing(
        share=("cfg",), every_layers=1, every_steps=1, round_to=16, ages="step"
    )
    assert example.prompt is not None
    assert (example.prompt.start, example.prompt.end) == (2.0, 1.0)
    assert (example.passes.sink_unmerge, example.passes.split_projection) == (False, True)


def test_the_docstring_holds_a_recipe() -> None:
    _, _, block = (Recipe.__doc__ or "").partition("Example::")
    recipe = Recipe.from_yaml_text("\n".join(line[8:] for line in block.splitlines()))
    assert (recipe.name, recipe.reuse, recipe.prompt, recipe.seed) == ("example", None, None, 0)


def test_frozen(example: Recipe) -> None:
    with pytest.raises(ValidationError, match="frozen"):
        example.seed = 1


def test_direct_construction_is_checked(example: Recipe) -> None:
    fields = {name: getattr(example, name) for name in Recipe.model_fields}
    assert Recipe(**fields) == example
    with pytest.raises(ValidationError, match=r"ratio: found a ratio of up to 0\.9; accepted at most 0\.75"):
        Recipe(**{**fields, "ratio": ConstantRatio(curve="constant", start=0.9)})


def test_integers_are_fine_where_numbers_are_wanted(example_text: str) -> None:
    recipe = Recipe.from_yaml_text(
        example_text.replace("start: 2.0", "start: 2").replace("end: 0.3", "end: 0")
    )
    assert recipe.prompt is not None
    assert (recipe.prompt.start, type(recipe.prompt.start)) == (2.0, float)
    assert (recipe.ratio.end, type(recipe.ratio.end)) == (0.0, float)


def test_every_ratio_has_ends_levels_and_a_peak() -> None:
    constant = ConstantRatio(curve="constant", start=0.4)
    listed = ListRatio(curve="list", values=(0.1, 0.6, 0.3), levels=2)
    threshold = ThresholdRatio(threshold=0.9, start=0.7, end=0.2)
    assert (constant.start, constant.end, constant.levels, peak(constant)) == (0.4, 0.4, 1, 0.4)
    assert (listed.start, listed.end, listed.levels, peak(listed)) == (0.1, 0.3, 2, 0.6)
    assert (threshold.start, threshold.end, threshold.levels, peak(threshold)) == (0.7, 0.2, 4, 0.7)


class TestOverride:
    def test_dotted_paths_names_indices_and_wildcards(self, example: Recipe) -> None:
        changed = example.override(
            {
                "ratio.start": 0.5,
                "sites.*.expect": 6,
                "sites.ff.input": "x",
                "stages.1.until": 1,
                "plan.share": [],
            }
        )
        assert changed.ratio.start == 0.5
        assert [(site.expect, site.input) for site in changed.sites] == [(6, "hidden_states"), (6, "x")]
        assert changed.plan.share == ()
        assert example.ratio.start == 0.7, "the original stays"

    def test_mappings_merge_and_another_method_replaces(self, example: Recipe) -> None:
        changed = example.override(
            stages={"structure": {"method": {"age_weight": 0.2}}}, keep_dense={"last_steps": 4}
        )
        assert changed.stages[0].method == SSM(age_weight=0.2)
        assert changed.keep_dense == example.keep_dense.model_copy(update={"last_steps": 4})
        swapped = example.override({"stages.structure.method.name": "idm"})
        assert swapped.stages[0].method == IDM()

    def test_input_shapes(self, example: Recipe) -> None:
        changed = example.override({"inputs.guidance": ["batch", 4]})
        assert changed.inputs["guidance"] == InputSpec(shape=("batch", 4))

    def test_nothing_changes_nothing(self, example: Recipe) -> None:
        assert example.override() == example

    @pytest.mark.parametrize(
        ("path", "value", "message"),
        [
            (
                "ratio.strat",
                0.5,
                r"example \(overridden\): ratio\.strat: found an unknown key; accepted .*'start'",
            ),
            (
                "stages.detial.until",
                1,
                r"stages\.detial: found the unknown name 'detial'; accepted 'structure' or",
            ),
            (
                "sites.7.expect",
                1,
                r"sites\.7: found the unknown id '7'; accepted 'attn' or 'ff', an index below 2",
            ),
            ("sites.ff.expect", "6", r"sites\[1\]\.expect: found '6'; accepted an integer from 1 or null"),
            ("seed", {1, 2}, r"seed: found a list of 2; accepted an integer"),
        ],
    )
    def test_messages(self, example: Recipe, path: str, value: object, message: str) -> None:
        with pytest.raises(RecipeError, match=message):
            example.override({path: value})


class TestYaml:
    def test_round_trip(self, example: Recipe) -> None:
        again = Recipe.from_yaml_text(example.to_yaml())
        assert again == example
        assert again.to_yaml() == example.to_yaml()

    def test_null_options_survive(self, example: Recipe) -> None:
        exact = example.override({"stages.detail.method.probe_queries": None})
        assert exact.stages[1].method == IDM(probe_queries=None) != IDM()
        assert Recipe.from_yaml_text(exact.to_yaml()) == exact

    @given(description=st.text(max_size=60), seed=st.integers(-(2**63), 2**63), weight=st.floats(0, 1))
    @settings(max_examples=60, deadline=None)
    def test_any_text_and_number_round_trips(self, description: str, seed: int, weight: float) -> None:
        recipe = load_recipe("toy-sd3-windows").override(
            description=description, seed=seed, reuse={"weight": weight}
        )
        assert Recipe.from_yaml_text(recipe.to_yaml()) == recipe

    @pytest.mark.parametrize(
        "text", ["1e-3", "12", "true", "null", "~", "no", "12:30", "a: b", "- x", "#", "*x", "&x"]
    )
    def test_text_that_looks_like_something_else_is_quoted(self, example: Recipe, text: str) -> None:
        data = read_yaml(example.override(description=text).to_yaml(), "x").data
        assert data["description"] == text


class TestFingerprint:
    def test_does_not_depend_on_spelling(self, example: Recipe, example_text: str) -> None:
        lines = example_text.splitlines()
        reordered = "\n".join(["# a comment", *reversed(lines[14:]), *lines[:14]])
        spelled_out = reordered.replace("start: 2.0", "start: 2, end: 1").replace("seed: 7", "seed: 0007")
        assert Recipe.from_yaml_text(spelled_out).fingerprint() == example.fingerprint()
        assert hash(Recipe.from_yaml_text(spelled_out)) == hash(example)

    @pytest.mark.parametrize(
        ("path", "value"), [("seed", 8), ("ratio.end", 0.31), ("stages.0.method.age_sign", 1)]
    )
    def test_depends_on_every_value(self, example: Recipe, path: str, value: object) -> None:
        assert example.override({path: value}).fingerprint() != example.fingerprint()

    def test_is_the_same_in_every_process_and_release(self) -> None:
        text = """
            {version: 1, name: f, model: [M], tokens: {grid: {ids: i}}, reuse: {order: 0, weight: 0.5},
             sites: [{id: s, kind: attention, match: a}], ratio: {curve: constant, start: 0},
             stages: [{name: a, until: 1, sites: [s], method: {name: skip}}]}
        """
        golden = "78350232343e"
        assert Recipe.from_yaml_text(text).fingerprint()[:12] == golden, (
            "a change here invalidates saved artefacts"
        )
