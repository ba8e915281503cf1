from __future__ import annotations

import math
import re

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sdtm_fx.errors import RecipeError
from sdtm_fx.recipe.yaml_source import MAX_CHARACTERS, read_scalar, read_yaml


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("true", True),
        ("false", False),
        ("null", None),
        ("~", None),
        ("", None),
        ("12", 12),
        ("-3", -3),
        ("0.5", 0.5),
        (".5", 0.5),
        ("1.", 1.0),
        ("1e-3", 1e-3),
        ("2E+2", 200.0),
        ("no", "no"),
        ("yes", "yes"),
        ("on", "on"),
        ("off", "off"),
        ("True", "True"),
        ("Null", "Null"),
        ("12:30", "12:30"),
        ("1_000", "1_000"),
        ("0x1F", "0x1F"),
        ("2024-01-01", "2024-01-01"),
        (".inf", ".inf"),
        (".nan", ".nan"),
        ("1e999", "1e999"),
    ],
)
def test_plain_scalars(text: str, value: object) -> None:
    read = read_yaml(f"key: {text}", "x").data["key"]
    assert read == value
    assert type(read) is type(value)


@pytest.mark.parametrize("quoted", ["'1'", '"1"', "'true'", '"null"', "'1e-3'"])
def test_quoted_scalars_are_text(quoted: str) -> None:
    assert read_yaml(f"key: {quoted}", "x").data["key"] == quoted[1:-1]


@given(st.text(max_size=20))
@settings(max_examples=200, deadline=None)
def test_scalars_are_never_infinite_and_keep_text(text: str) -> None:
    value = read_scalar(text)
    if isinstance(value, str):
        assert value == text
    elif isinstance(value, float):
        assert math.isfinite(value)


def test_marks_point_at_keys_and_items() -> None:
    source = read_yaml("a: 1\nb:\n  c:\n    - 2\n    - {d: 3}\n", "file.yaml")
    assert source.data == {"a": 1, "b": {"c": [2, {"d": 3}]}}
    lines = {path: mark.line for path, mark in source.marks.items()}
    assert lines == {
        (): 1,
        ("a",): 1,
        ("b",): 2,
        ("b", "c"): 3,
        ("b", "c", 0): 4,
        ("b", "c", 1): 5,
        ("b", "c", 1, "d"): 5,
    }
    assert source.where(("b", "c", 7)) == "file.yaml:3", "an unknown path is placed at what holds it"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (
            "a: 1\nb: 2\na: 3\n",
            "f.yaml:3: a: found the key a second time (first on line 1); accepted each key once",
        ),
        ("a:\n  b: {c: 1, c: 1}\n", "f.yaml:2: a.b.c: found the key a second time (first on line 2)"),
        ("a: &x [1]\n", "f.yaml:1: a: found the anchor &x; accepted plain mappings, lists and scalars"),
        ("a: 1\nb: *x\n", "f.yaml:2: b: found the alias *x; accepted plain mappings, lists and scalars"),
        ("a: !!python/name:os.system 1\n", "found the tag tag:yaml.org,2002:python/name:os.system"),
        ("a: !!str 1\n", "f.yaml:1: a: found the tag tag:yaml.org,2002:str"),
        ("a: 1\n---\nb: 2\n", "f.yaml:2: recipe: found a second document; accepted one document"),
        ("- 1\n", "f.yaml:1: recipe: found a list; accepted a mapping"),
        ("3\n", "f.yaml:1: recipe: found a scalar; accepted a mapping"),
        ("# nothing\n", "recipe: found an empty text; accepted a mapping"),
        ("a: [1, 2\nb: 3\n", "f.yaml:2: found text that is not YAML (while parsing a flow sequence"),
        ("a: 1\n\tb: 2\n", "f.yaml:2: found text that is not YAML"),
        ("a: \x00\n", "f.yaml: found text that is not YAML"),
        ("? [a]\n: 1\n", "f.yaml:1: recipe: found a key that is not text; accepted text as key"),
        ("a: " + "[" * 40 + "]" * 40, "found more than 16 levels; accepted fewer levels"),
        ("a: 1\n" + "#" * MAX_CHARACTERS, f"recipe: found {MAX_CHARACTERS + 5} characters; accepted at most"),
    ],
)
def test_what_recipes_may_not_use(text: str, message: str) -> None:
    with pytest.raises(RecipeError, match=re.escape(message)):
        read_yaml(text, "f.yaml")


def test_an_alias_bomb_is_refused_at_its_first_anchor() -> None:
    bomb = "a: &a [x, x]\n" + "".join(
        f"{b}: &{b} [*{a}, *{a}]\n" for a, b in zip("abcdefgh", "bcdefghi", strict=True)
    )
    with pytest.raises(RecipeError, match=r"f\.yaml:1: a: found the anchor &a"):
        read_yaml(bomb, "f.yaml")
