"""Whatever stands anywhere in a recipe, it loads or fails as a `RecipeError` in the one form of message."""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any

from hypothesis import given, settings
from hypothesis import strategies as st

from sdtm_fx.errors import RecipeError
from sdtm_fx.recipe import Recipe, load_recipe

MESSAGE = re.compile(r"<mapping>: [\w.*\[\]]+: .*found .+; accepted .+", re.DOTALL)

KEYS = st.sampled_from(
    ["name", "curve", "start", "window", "id", "ids", "latent", "shape", "int", "ssm", "x", "*"]
)
SCALARS = st.one_of(
    st.none(), st.booleans(), st.integers(-3, 3), st.floats(), KEYS, st.sampled_from(["re:(", "**"])
)
VALUES = st.recursive(
    SCALARS,
    lambda inner: st.one_of(st.lists(inner, max_size=3), st.dictionaries(KEYS, inner, max_size=3)),
    max_leaves=4,
)


def containers(value: Any) -> Iterator[Any]:
    """Yield every mapping and list of some data."""
    if isinstance(value, (dict, list)):
        yield value
        for inner in value.values() if isinstance(value, dict) else value:
            yield from containers(inner)


@given(data=st.data(), count=st.integers(1, 3))
@settings(max_examples=100, deadline=None)
def test_any_fault(data: st.DataObject, count: int) -> None:
    recipe = load_recipe("flux.1-dev-windows").to_data()
    for _ in range(count):
        target = data.draw(st.sampled_from(list(containers(recipe))), label="target")
        keys = list(target) if isinstance(target, dict) else list(range(len(target)))
        if isinstance(target, dict) and data.draw(st.booleans(), label="new key"):
            target[data.draw(KEYS, label="key")] = data.draw(VALUES, label="value")
        elif keys:
            key = data.draw(st.sampled_from(keys), label="key")
            if data.draw(st.booleans(), label="delete"):
                del target[key]
            else:
                target[key] = data.draw(VALUES, label="value")
    try:
        loaded = load_recipe(recipe)
    except RecipeError as error:
        for line in str(error).split("\n"):
            assert MESSAGE.fullmatch(line), line
    else:
        assert Recipe.from_yaml_text(loaded.to_yaml()) == loaded
