"""The guide to writing recipes: every command runs as it stands there, and prints what is shown."""

from __future__ import annotations

import itertools
import json
import re
from pathlib import Path

import pytest
import torch
import yaml
from jsonschema import Draft202012Validator

from sdtm_fx.evaluate.drawing import threads
from tests.pages import Reader, read_blocks

TEXT = (Path(__file__).parents[2] / "docs" / "guide.md").read_text(encoding="utf-8")
BLOCKS = read_blocks(TEXT)
NEEDS = {
    "What the draft says": ("Draft",),
    "In Python": ("A checkpoint to run",),
    "Stages and ratios": ("A checkpoint to run",),
    "Judge": ("A checkpoint to run", "Stages and ratios"),
    "Tune": ("A checkpoint to run",),
}
"""Sections that go on with what others have made; what is only saved is there for all."""

FAST = ("What you need", "By hand", "In an editor")


class Follower:
    """A reader who does every section once, and before it those that it goes on with."""

    def __init__(self, folder: Path) -> None:
        self.reader = Reader(BLOCKS, folder)
        self.done: set[str] = set()

    def follow(self, section: str) -> None:
        for needed in (*NEEDS.get(section, ()), section):
            if needed not in self.done:
                self.reader.save_files(until=needed)
                self.reader.follow(needed)
                self.done.add(needed)


@pytest.fixture(scope="module")
def follower(tmp_path_factory: pytest.TempPathFactory) -> Follower:
    return Follower(tmp_path_factory.mktemp("guide"))


@pytest.mark.parametrize(
    "section",
    [
        pytest.param(name, marks=() if name in FAST else pytest.mark.slow)
        for name in dict.fromkeys(block.section for block in BLOCKS)
    ],
)
def test_it_goes_as_the_page_says(follower: Follower, section: str) -> None:
    with threads(1), torch.random.fork_rng(devices=[]):
        follower.follow(section)


def test_what_is_shown_follows_something_that_ran() -> None:
    languages = [block.language for block in BLOCKS]
    assert {"sh", "python", "text", "yaml", "json"} == set(languages)
    for before, block in itertools.pairwise(BLOCKS):
        if block.language == "text" and not block.is_saved:
            assert before.language in ("sh", "python"), f"line {block.line}"
    # Every command shows what it prints, but for the one whose output is a file.
    silent = [
        block.text
        for block, after in itertools.pairwise(BLOCKS)
        if block.language == "sh" and after.language != "text"
    ]
    assert silent == ["sdtm-fx recipes schema > recipe.schema.json\n"]


def test_the_schema_takes_what_is_right_and_refuses_what_is_misspelt(follower: Follower) -> None:
    follower.follow("In an editor")
    schema = json.loads((follower.reader.folder / "recipe.schema.json").read_text(encoding="utf-8"))
    recipes = {
        block.file: yaml.safe_load(block.text)
        for block in BLOCKS
        if block.language == "yaml" and block.is_saved
    }
    wrong = {name for name, data in recipes.items() if not Draft202012Validator(schema).is_valid(data)}
    assert len(recipes) == 13
    assert wrong == {"misspelt.yaml"}


def test_it_names_no_model_that_a_recipe_is_shipped_for() -> None:
    import sdtm_fx

    shipped = {kind for name in sdtm_fx.list_recipes() for kind in sdtm_fx.load_recipe(name).model}
    saved = re.findall(r'"_class_name": "(\w+)"', TEXT)
    assert saved
    assert shipped.isdisjoint(saved)


def test_the_commands_are_those_of_the_readme() -> None:
    readme = (Path(__file__).parents[2] / "README.md").read_text(encoding="utf-8")
    used = set(re.findall(r"^sdtm-fx ([\w-]+)", TEXT, flags=re.MULTILINE))
    assert used == {"inspect", "author", "recipes", "explain", "bench", "analyze", "eval", "tune"}
    assert all(f"sdtm-fx {name}" in readme for name in used)
