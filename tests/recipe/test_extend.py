from __future__ import annotations

import importlib.resources
import re
from pathlib import Path

import pytest

from sdtm_fx.errors import RecipeError
from sdtm_fx.recipe import ConstantRatio, CurveRatio, IdsGrid, Recipe, list_recipes, load_recipe
from sdtm_fx.recipe.extend import path_beside

HEAD = "version: 1\nname: child\n"


@pytest.fixture
def base(tmp_path: Path, example_text: str) -> Path:
    path = tmp_path / "base.yaml"
    path.write_text(example_text)
    return path


def child(folder: Path, text: str, head: str = HEAD, name: str = "child.yaml") -> Path:
    path = folder / name
    path.write_text(head + text)
    return path


def test_mappings_merge_and_lists_replace(base: Path, example: Recipe) -> None:
    text = "extends: base.yaml\nmodel: [Other]\nratio: {end: 0.5}\nreuse: null\nplan: {share: []}\n"
    recipe = Recipe.from_file(child(base.parent, text))
    assert (recipe.name, recipe.model, recipe.reuse) == ("child", ("Other",), None)
    assert recipe.ratio == CurveRatio(curve="cosine", start=0.7, end=0.5)
    assert (recipe.plan.share, recipe.plan.round_to) == ((), 16), "the list is replaced, its neighbour stays"
    assert recipe.stages == example.stages


def test_another_file_is_named_as_seen_from_the_folder(base: Path) -> None:
    below = base.parent / "below"
    below.mkdir()
    assert path_beside(base, base.parent) == "base.yaml"
    text = f"extends: {path_beside(base, below)}\n"
    assert text == "extends: ../base.yaml\n"
    assert Recipe.from_file(child(below, text)).stages == Recipe.from_file(base).stages


def test_another_kind_replaces_and_a_cousin_merges(base: Path) -> None:
    constant = child(base.parent, "extends: base.yaml\nratio: {curve: constant, start: 0.2}\n")
    assert Recipe.from_file(constant).ratio == ConstantRatio(curve="constant", start=0.2)
    linear = child(base.parent, "extends: base.yaml\nratio: {curve: linear}\n")
    assert Recipe.from_file(linear).ratio == CurveRatio(curve="linear", start=0.7, end=0.3)
    ids = child(base.parent, "extends: base.yaml\ntokens: {grid: {ids: img_ids}}\n")
    assert Recipe.from_file(ids).tokens.grid == IdsGrid(ids="img_ids")


def test_a_pruned_model_drops_expected_counts(base: Path) -> None:
    recipe = Recipe.from_file(child(base.parent, 'extends: base.yaml\nsites:\n  "*": {expect: null}\n'))
    assert [site.expect for site in recipe.sites] == [None, None]
    assert [site.id for site in recipe.sites] == ["attn", "ff"]


def test_errors_point_into_the_file_that_holds_the_fault(base: Path) -> None:
    path = child(
        base.parent, "extends: base.yaml\nratio: {end: 2}\nsites:\n  ff: {expect: -1}\n  attn: {kid: 3}\n"
    )
    with pytest.raises(RecipeError) as caught:
        Recipe.from_file(path)
    assert caught.value.args[0].splitlines() == [
        f"{path}:7: sites[0].kid: found an unknown key; accepted id, kind, match, input, output, "
        "prefix, suffix, rotary, rotary_axis, metric, merge, downsample, "
        "call, without, expect (did you mean 'kind'?)",
        f"{path}:6: sites[1].expect: found -1; accepted an integer from 1 or null",
        f"{path}:4: ratio.end: found 2; accepted a number from 0 to below 1",
    ]
    base.write_text(base.read_text().replace("seed: 7", "seed: x"))
    fine = child(base.parent, "extends: base.yaml\nmodel: [Other]\n")
    with pytest.raises(RecipeError, match=re.escape(f"{base}:21: seed: found 'x'; accepted an integer")):
        Recipe.from_file(fine)


def test_a_replaced_list_forgets_the_lines_below_it(base: Path) -> None:
    stages = "stages:\n- {name: all, sites: [ff], method: {name: ssm}}\n"
    path = child(base.parent, "extends: base.yaml\n" + stages)
    with pytest.raises(RecipeError, match=re.escape(f"{path}:5: stages[0].until: found nothing; accepted a")):
        Recipe.from_file(path)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (
            "extends: bas.yaml\n",
            "found no readable file (No such file or directory); accepted a recipe in YAML",
        ),
        ("extends: bas.yaml\n", "(did you mean 'base.yaml'?)"),
        ("extends: sd3-medum\n", "child.yaml:3: extends: found 'sd3-medum'; accepted 'auraflow', 'chroma', "),
        ("extends: sd3-medum\n", "or a path that ends in .yaml (did you mean 'sd3-medium'?)"),
        (
            "extends: 3\n",
            "child.yaml:3: extends: found 3; accepted the name of a recipe, or a path that ends in .yaml",
        ),
        ("extends: child.yaml\n", "child.yaml:3: extends: found a circle ("),
        (
            "extends: base.yaml\nsites: {fff: {}}\n",
            "child.yaml:4: sites.fff: found the unknown id 'fff'; accepted 'attn' or 'ff', an index "
            "below 2, or '*' (did you mean 'ff'?)",
        ),
    ],
)
def test_messages(base: Path, text: str, message: str) -> None:
    with pytest.raises(RecipeError, match=re.escape(message)):
        Recipe.from_file(child(base.parent, text))


def test_a_circle_of_files_is_told_in_full(tmp_path: Path) -> None:
    a = child(tmp_path, "extends: b.yaml\n", name="a.yaml")
    b = child(tmp_path, "extends: a.yaml\n", name="b.yaml")
    message = (
        f"{b}:3: extends: found a circle ({a} -> {b} -> {a}); accepted recipes that do not extend each other"
    )
    with pytest.raises(RecipeError, match=re.escape(message)):
        Recipe.from_file(a)


@pytest.mark.parametrize(
    ("head", "message"),
    [
        ("name: child\n", "child.yaml:1: version: found nothing; accepted 1"),
        ("version: 1\n", "child.yaml:1: name: found nothing; accepted a name of its own"),
        ("version: 1\nname: 3\n", "child.yaml:2: name: found 3; accepted a name of its own"),
    ],
)
def test_version_and_name_are_not_inherited(base: Path, head: str, message: str) -> None:
    with pytest.raises(RecipeError, match=re.escape(message)):
        Recipe.from_file(child(base.parent, "extends: base.yaml\n", head))


def test_text_and_mappings_extend_names_and_absolute_paths(base: Path) -> None:
    assert Recipe.from_yaml_text(HEAD + f"extends: {base}\n").seed == 7
    mapping = {"version": 1, "name": "child", "extends": "sd3-medium-windows", "ratio": {"start": 0.1}}
    assert load_recipe(mapping).ratio.start == 0.1
    with pytest.raises(
        RecipeError, match=r"<text>:3: extends: found the relative path 'base.yaml'; accepted a name"
    ):
        Recipe.from_yaml_text(HEAD + "extends: base.yaml\n")


def test_load_recipe_takes_names_paths_mappings_and_recipes(base: Path, example: Recipe) -> None:
    assert load_recipe(base) == load_recipe(str(base)) == load_recipe(example.to_data()) == example
    assert load_recipe(example) is example
    assert load_recipe("paper/sd3-medium").name == "paper/sd3-medium"
    with pytest.raises(
        RecipeError,
        match=r"found the recipe name 'flux1-dev'; accepted 'auraflow', .*'toy-sd3', .*one under baselines/ or paper/ "
        r"\(`sdtm-fx recipes list`\), or a path that ends in .yaml \(did you mean 'flux.1-dev'",
    ):
        load_recipe("flux1-dev")


def test_unreadable_files(tmp_path: Path) -> None:
    (tmp_path / "latin.yaml").write_bytes(b"name: \xe9\n")
    with pytest.raises(RecipeError, match=r"latin\.yaml: found no readable file \('utf-8' codec"):
        load_recipe(tmp_path / "latin.yaml")
    with pytest.raises(RecipeError, match=r"found no readable file \(Is a directory\)"):
        load_recipe(tmp_path)


def test_without_an_installation_the_error_says_what_to_do(monkeypatch: pytest.MonkeyPatch) -> None:
    def missing(package: str) -> None:
        raise ModuleNotFoundError(package)

    monkeypatch.setattr(importlib.resources, "files", missing)
    with pytest.raises(RecipeError, match=r"found no package sdtm_fx\.recipes; accepted .*pip install -e \."):
        list_recipes()
