"""Every message of the recipe language: file, line, key path, found, accepted, nearest."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable

import pytest

from sdtm_fx.errors import RecipeError
from sdtm_fx.methods import METHODS, SSM
from sdtm_fx.recipe import KeepDense, Recipe, load_recipe

ErrorOf = Callable[[str, str], str]

WINDOW = "window: [2, 2]"
RATIO = "{curve: cosine, start: 0.7, end: 0.3}"


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        # keys
        ("seed: 7", "sed: 7", ":21: sed: found an unknown key; accepted version, name, description, model"),
        (
            "end: 0.3",
            "edn: 0.3",
            ":15: ratio.edn: found an unknown key; accepted curve, start, end, levels (did you mean 'end'?)",
        ),
        ("end: 0.3", "levels: 2", ":15: ratio.end: found nothing; accepted a number from 0 to below 1"),
        (WINDOW, "windw: [2, 2]", ":13: stages[0].method.windw: found an unknown key; accepted name, window"),
        (WINDOW, "windw: [2, 2]", "(did you mean 'window'?)"),
        (
            "when: g",
            "wen: g",
            ":8: inputs.guidance.wen: found an unknown key; accepted shape, copies, fill, read, when",
        ),
        ("latent: h", "laten: h", ":5: tokens.grid: found a mapping with keys laten, patch; accepted"),
        ("latent: h", "laten: h", "(did you mean 'latent'?)"),
        ("id: ff, ", "", ":11: sites[1].id: found nothing; accepted a name of letters, digits, _ and -"),
        ("name: example\n", "", ":1: name: found nothing; accepted a name of letters"),
        # version
        ("version: 1\n", "", ":1: version: found nothing; accepted 1"),
        ("version: 1\n", "version: 2\n", ":1: version: found 2; accepted 1"),
        ("version: 1\n", "version: true\n", ":1: version: found true; accepted 1"),
        ("version: 1\n", "version: 1.0\n", ":1: version: found 1.0; accepted 1"),
        # types
        ("end: 0.3", "end: '0.3'", ":15: ratio.end: found '0.3'; accepted a number from 0 to below 1"),
        ("end: 0.3", "end: no", ":15: ratio.end: found 'no'; accepted a number"),
        ("end: 0.3", "end: .nan", ":15: ratio.end: found '.nan'; accepted a number"),
        ("end: 0.3", "end: [0.3]", ":15: ratio.end: found a list of 1; accepted a number"),
        ("seed: 7", "seed: 7.5", ":21: seed: found 7.5; accepted an integer"),
        ("seed: 7", "seed: true", ":21: seed: found true; accepted an integer"),
        ("seed: 7", "seed: null", ":21: seed: found null; accepted an integer"),
        ("unmerge: false", "unmerge: no", ":20: passes.sink_unmerge: found 'no'; accepted true or false"),
        (
            "[SD3Transformer2DModel]",
            "SD3",
            ":3: model: found 'SD3'; accepted a list of at least one item, each text",
        ),
        (
            "[SD3Transformer2DModel]",
            "[]",
            ":3: model: found an empty list; accepted a list of at least one item",
        ),
        ("model: [SD", "model: ['', SD", ":3: model[0]: found ''; accepted text that is not empty"),
        (WINDOW, "window: [2, x]", ":13: stages[0].method.window[1]: found 'x'; accepted an integer from 1"),
        (
            WINDOW,
            "window: 2",
            ":13: stages[0].method.window: found 2; accepted a list of 2 to 3 items, each an integer from 1",
        ),
        (
            "patch: 2",
            "patch: [2]",
            ":5: tokens.grid.patch: found a list of 1; accepted an integer from 1 or a list [",
        ),
        ("patch: 2", "patch: x", ":5: tokens.grid.patch: found 'x'; accepted an integer from 1 or a list ["),
        (
            "input: hidden_states",
            "input: 0.5",
            ":10: sites[0].input: found 0.5; accepted an integer from 0 or text",
        ),
        (
            "[batch, in_",
            "[2.5, in_",
            ":7: inputs.hidden_states[0]: found 2.5; accepted an integer from 1 or a name",
        ),
        (
            "shape: [batch]",
            "shape: [0]",
            ":8: inputs.guidance.shape[0]: found 0; accepted an integer from 1 or",
        ),
        (
            "sites: [ff], m",
            "sites: [], m",
            ":14: stages[1].sites: found an empty list; accepted a list of at least",
        ),
        # ranges
        ("end: 0.3", "end: 1.0", ":15: ratio.end: found 1.0; accepted a number from 0 to below 1"),
        ("until: 0.4", "until: 0", ":13: stages[0].until: found 0; accepted a number above 0, at most 1"),
        (
            "every_steps: 3",
            "every_steps: 1",
            ":16: keep_dense.every_steps: found 1; accepted an integer from 2 or a number above 1 or null",
        ),
        (
            "every_steps: 3",
            "every_steps: 1.0",
            ":16: keep_dense.every_steps: found 1.0; accepted an integer from 2 or a number above 1 or null",
        ),
        ("weight: 0.1", "weight: 2", ":17: reuse.weight: found 2; accepted a number from 0 to 1"),
        ("round_to: 16", "round_to: 0", ":18: plan.round_to: found 0; accepted an integer from 1"),
        ("start: 2.0", "start: 8", ":19: prompt.start: found 8; accepted a number from 0.25 to 4"),
        (WINDOW, "age_weight: -1", ":13: stages[0].method.age_weight: found -1; accepted a number from 0"),
        (
            WINDOW,
            "window: [1, 1]",
            ":13: stages[0].method: ssm: found window (1, 1); accepted (height, width)",
        ),
        # choices
        (
            "kind: attention",
            "kind: attn",
            ":10: sites[0].kind: found 'attn'; accepted 'attention' or 'feed_forward'",
        ),
        ("order: 1", "order: 2", ":17: reuse.order: found 2; accepted 0 or 1"),
        (
            "[cfg]",
            "[cgf]",
            ":18: plan.share[0]: found 'cgf'; accepted 'cfg' or 'batch' (did you mean 'cfg'?)",
        ),
        (
            "curve: cosine",
            "curve: cosin",
            ":15: ratio.curve: found 'cosin'; accepted 'cosine', 'linear', 'constant', 'list' or 'full' (did "
            "you mean 'cosine'?)",
        ),
        (
            "curve: cosine, ",
            "",
            ":15: ratio: found a mapping with keys start, end; accepted a mapping with keys curve,",
        ),
        (
            RATIO,
            "0.7",
            ":15: ratio: found 0.7; accepted a mapping with keys curve, start, end, levels or a mapping",
        ),
        ("name: idm", "name: imd", ":14: stages[1].method.name: found 'imd'; accepted 'ssm', 'idm', 'fidm'"),
        ("name: idm", "name: imd", "(did you mean 'idm'?)"),
        ("{name: idm}", "{}", ":14: stages[1].method.name: found nothing; accepted 'ssm', 'idm', 'fidm'"),
        (
            "{name: idm}",
            "{name: idm, idm: {idm: 1}}",
            ":14: stages[1].method.idm: found an unknown key; accepted name, window",
        ),
        (
            "{name: idm}",
            "idm",
            ":14: stages[1].method: found 'idm'; accepted a mapping with name 'ssm', 'idm', 'fidm', ",
        ),
    ],
)
def test_fields(error_of: ErrorOf, old: str, new: str, message: str) -> None:
    assert message in error_of(old, new)


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        (
            "{id: ff,",
            "{id: attn, kind: attention, match: a}\n  - {id: ff,",
            ":11: sites[1].id: found 'attn' a second time; accepted a different id for each",
        ),
        (
            "name: detail",
            "name: structure",
            ":14: stages[1].name: found 'structure' a second time; accepted a different",
        ),
        (
            "[attn, ff]",
            "[attn, ffn]",
            ":13: stages[0].sites[1]: found the unknown site 'ffn'; accepted 'attn' or 'ff' (did you "
            "mean 'ff'?)",
        ),
        (
            "[attn, ff]",
            "[ff, ff]",
            ":13: stages[0].sites[1]: found 'ff' a second time; accepted each site once",
        ),
        (
            "[cfg]",
            "[cfg, cfg]",
            ":18: plan.share[1]: found 'cfg' a second time; accepted each of 'cfg', 'batch' once",
        ),
        (
            "until: 0.4",
            "until: 1.0",
            ":14: stages[1].until: found 1 after 1; accepted more than 1, at most 1",
        ),
        (
            "until: 1.0",
            "until: 0.3",
            ":14: stages[1].until: found 0.3 after 0.4; accepted more than 0.4, at most 1",
        ),
        ("until: 1.0", "until: 0.9", ":14: stages[1].until: found 0.9 in the last stage; accepted 1"),
        (
            "start: 0.7",
            "start: 0.76",
            ":15: ratio: found a ratio of up to 0.76; accepted at most 0.75, which is what ssm can "
            "remove in stage 'structure'",
        ),
        (
            RATIO,
            "{curve: list, values: [0, 0.8]}",
            ":15: ratio: found a ratio of up to 0.8; accepted at most 0.75",
        ),
        (
            "{latent: hidden_states, patch: 2}",
            "{height: 3, width: 5}",
            ":15: ratio: found a ratio of up to 0.7; accepted at most 0.4,",
        ),
        (
            "{curve: constant, start: 0.8}",
            "{threshold: 0.9, start: 0.8}",
            ":14: stages[1].ratio: found a threshold for method idm; accepted a threshold only for methods that "
            "score what they merge: ssm, ca_tome",
        ),
        (
            "{name: idm}, ratio: {curve: constant, start: 0.8}",
            "{name: ssm, select: random}, ratio: {threshold: 0.9, start: 0.7}",
            ":14: stages[1].ratio: found a threshold for windows that are selected as 'random'; accepted ssm "
            "with select 'similar', whose windows have a score",
        ),
        (
            "{name: idm}",
            "{name: skip}",
            ":14: stages[1].ratio: found a ratio beside method skip; accepted no ratio: skip removes every",
        ),
        ("reuse: {order: 1, weight: 0.1}", "reuse: null", ""),
        (
            "{every_steps: 3,",
            "{first_steps: 1,",
            ":17: reuse.order: found order 1 with 1 dense first steps and no every_steps; accepted "
            "keep_dense with",
        ),
        (
            "output: 0",
            "rotary: tables",
            ":13: stages[0].sites: found 'attn', whose rotary tables have no batch axis, with a plan "
            "per sample; accepted plan.share with 'batch'",
        ),
        (
            "kind: attention",
            "kind: feed_forward",
            ":14: stages[1].method: found idm, which reads attention, in a recipe without a site of "
            "kind 'attention'",
        ),
        (
            '"blocks.*.ff"',
            '"re:blocks.(ff"',
            ":11: sites[1].match: found a broken regular expression (missing ), unterminated",
        ),
        (
            '"blocks.1*"',
            '"re:"',
            ":16: keep_dense.layers[2]: found an empty pattern; accepted a glob over module paths",
        ),
    ],
)
def test_contradictions(error_of: ErrorOf, example_text: str, old: str, new: str, message: str) -> None:
    if not message:  # the same edit with nothing that depends on it is fine
        assert Recipe.from_yaml_text(example_text.replace(old, new)).reuse is None
        return
    text = error_of(old, new)
    assert "example.yaml" + message in text
    assert "\n" not in text, "one fault, one line"


def test_skip_needs_reuse(example: Recipe) -> None:
    skipping = {"stages": {"detail": {"method": {"name": "skip"}, "ratio": None}}}
    assert example.override(skipping).stages[1].method.name == "skip"
    with pytest.raises(
        RecipeError, match=r"stages\[1\]\.method: found skip without reuse; accepted skip with"
    ):
        example.override(skipping, reuse=None)


@pytest.mark.parametrize(
    ("order", "first_steps", "works"), [(0, 0, False), (0, 1, True), (1, 1, False), (1, 2, True)]
)
def test_reuse_needs_dense_steps(example: Recipe, order: int, first_steps: int, works: bool) -> None:
    changes = {"reuse.order": order, "keep_dense": {"every_steps": None, "first_steps": first_steps}}
    if works:
        assert example.override(changes).keep_dense.first_steps == first_steps
    else:
        with pytest.raises(RecipeError, match=rf"reuse\.order: found order {order} with {first_steps} dense"):
            example.override(changes)


def test_every_fault_is_reported_once_with_its_line(error_of: ErrorOf) -> None:
    text = error_of(
        "reuse: {order: 1, weight: 0.1}\nplan: {share: [cfg]", "reuse: {order: 3}\nplan: {share: cfg"
    )
    assert text.splitlines() == [
        "example.yaml:17: reuse.order: found 3; accepted 0 or 1",
        "example.yaml:17: reuse.weight: found nothing; accepted a number from 0 to 1",
        "example.yaml:18: plan.share: found 'cfg'; accepted a list, each 'cfg' or 'batch'",
    ]


@pytest.mark.parametrize("name", sorted(METHODS))
def test_methods_refuse_unknown_options_in_their_own_name(name: str) -> None:
    method = {"name": name, "no_such_option": 1}
    with pytest.raises(RecipeError) as caught:
        load_recipe({"version": 1, "name": "x", "stages": [{"method": method}]})
    lines = [line for line in str(caught.value).splitlines() if "method" in line]
    assert len(lines) == 1
    assert lines[0].startswith(
        "<mapping>: stages[0].method.no_such_option: found an unknown key; accepted name"
    )
    options = set(lines[0].partition("accepted ")[2].partition(" (did")[0].split(", "))
    assert options == {field.name for field in dataclasses.fields(METHODS[name])}


def test_data_from_python() -> None:
    with pytest.raises(RecipeError, match=r"ratio\.start: found nan; accepted a number from 0 to below 1"):
        load_recipe({"version": 1, "ratio": {"curve": "constant", "start": math.nan}})
    with pytest.raises(
        RecipeError, match=r"<mapping>: found Unable to serialize unknown type: .*object.*; accepted"
    ):
        load_recipe({"version": 1, "name": object()})
    with pytest.raises(
        RecipeError, match="load_recipe: found a int; accepted a recipe, its name, a path, or a"
    ):
        load_recipe(3)  # type: ignore[arg-type]


def test_parts_and_methods_may_stand_for_mappings(example: Recipe) -> None:
    changed = example.override(
        {"stages.structure.method": SSM(window=(4, 4))}, keep_dense=KeepDense(every_steps=2)
    )
    assert changed.stages[0].method == SSM(window=(4, 4))
    assert changed.keep_dense == KeepDense(every_steps=2)
