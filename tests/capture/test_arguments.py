"""Binding like Python does, and splitting arguments into structure and leaves."""

from __future__ import annotations

import functools
import inspect
from collections import namedtuple
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from sdtm_fx.capture.arguments import Signature, flatten, leaf_names, pick_leaves, unflatten
from sdtm_fx.capture.blocks import capture_block
from sdtm_fx.errors import CaptureError


def forward(self: object, x: Any, y: Any, scale: Any = 1.0, *, mask: Any = None) -> None:
    """A forward with positions, defaults and a keyword of its own."""


def open_forward(self: object, x: Any, **extra: Any) -> None:
    """A forward that takes any keyword."""


SIGNATURE = Signature.of(forward)


def test_bind_fills_defaults_in_the_order_of_the_signature() -> None:
    bound = SIGNATURE.bind((1,), {"mask": 4, "y": 2})
    assert list(bound.items()) == [("x", 1), ("y", 2), ("scale", 1.0), ("mask", 4)]


@settings(max_examples=60, deadline=None)
@given(
    st.lists(st.integers(), max_size=3),
    st.dictionaries(st.sampled_from(["x", "y", "scale", "mask", "other"]), st.integers(), max_size=4),
)
def test_bind_accepts_and_refuses_what_python_does(args: list[int], kwargs: dict[str, int]) -> None:
    try:
        expected = inspect.signature(forward).bind(None, *args, **kwargs)
    except TypeError:
        with pytest.raises(TypeError):
            SIGNATURE.bind(tuple(args), kwargs)
        return
    expected.apply_defaults()
    assert SIGNATURE.bind(tuple(args), kwargs) == {k: v for k, v in expected.arguments.items() if k != "self"}


@pytest.mark.parametrize(
    ("args", "kwargs", "message"),
    [
        ((1,), {}, "missing arguments: y"),
        ((1, 2), {"other": 3}, "unexpected argument 'other'"),
        ((1, 2), {"x": 3}, "multiple values for argument 'x'"),
        ((1, 2, 3, 4, 5), {}, "takes 4 arguments, 5 were given"),
    ],
)
def test_bind_says_what_is_wrong(args: tuple[int, ...], kwargs: dict[str, int], message: str) -> None:
    with pytest.raises(TypeError, match=message):
        SIGNATURE.bind(args, kwargs)


def test_open_ended_forwards_take_any_keyword() -> None:
    assert Signature.of(open_forward).bind((1,), {"other": 2}) == {"x": 1, "other": 2}


def test_decorators_are_looked_through() -> None:
    @functools.wraps(forward)
    def wrapped(*args: Any, **kwargs: Any) -> None:
        """Hide the parameters."""

    assert Signature.of(wrapped).names == SIGNATURE.names


# -- flatten and back ------------------------------------------------------------------------------

LEAVES = st.one_of(
    st.integers(),
    st.floats(allow_nan=False),
    st.builds(lambda n, ndim: torch.full((n,) * ndim, float(n)), st.integers(1, 3), st.integers(0, 3)),
)
VALUES = st.recursive(
    st.one_of(LEAVES, st.none(), st.booleans(), st.text(max_size=3)),
    lambda inner: st.one_of(
        st.lists(inner, max_size=3),
        st.lists(inner, max_size=3).map(tuple),
        st.dictionaries(st.sampled_from(["a", "b.c", "1", "class"]), inner, max_size=3),
    ),
    max_leaves=6,
)
ARGUMENTS = st.dictionaries(st.sampled_from(["x", "x_0", "x_a", "mask", "kw"]), VALUES, max_size=4)


@settings(max_examples=100, deadline=None)
@given(ARGUMENTS)
def test_unflatten_undoes_flatten(arguments: dict[str, Any]) -> None:
    key, leaves = flatten(arguments)
    hash(key)
    assert same(unflatten(key, iter(leaves)), arguments)


@settings(max_examples=100, deadline=None)
@given(ARGUMENTS)
def test_pick_leaves_finds_what_stands_where_the_leaves_stood(arguments: dict[str, Any]) -> None:
    key, leaves = flatten(arguments)
    stand_ins = [object() for _ in leaves]
    picked = pick_leaves(key, unflatten(key, iter(stand_ins)))
    assert len(picked) == len(stand_ins)
    assert all(a is b for a, b in zip(picked, stand_ins, strict=True))


@settings(max_examples=100, deadline=None)
@given(ARGUMENTS)
def test_leaf_names_can_be_parameters(arguments: dict[str, Any]) -> None:
    key, leaves = flatten(arguments)
    names = leaf_names(key)
    assert len(names) == len(leaves)
    exec(f"def parameters({', '.join(names)}): pass")  # fails for duplicates, keywords and odd characters
    for name, value in arguments.items():
        if isinstance(value, torch.Tensor | int | float) and not isinstance(value, bool):
            assert name in names  # sites name arguments, so these keep their names


def test_leaves_are_named_after_their_place() -> None:
    key, _ = flatten({"x": torch.ones(2), "rope": (torch.ones(1), torch.ones(1)), "kw": {"scale": 1.0}})
    assert leaf_names(key) == ["x", "rope_0", "rope_1", "kw_scale"]


def test_tensors_and_numbers_vary_and_all_else_is_structure() -> None:
    key, leaves = flatten({"x": torch.ones(2, 3), "n": 4, "s": 0.5, "flag": True, "none": None, "mode": "a"})
    assert leaves[1:] == [4, 0.5]
    assert (
        key == flatten({"x": torch.zeros(5, 9), "n": 7, "s": 1.5, "flag": True, "none": None, "mode": "a"})[0]
    )


@pytest.mark.parametrize(
    "other",
    [
        {"x": torch.ones(2, 4, 3, dtype=torch.float16)},
        {"x": torch.ones(2, 4)},
        {"x": torch.ones(2, 1, 3)},  # one value for all tokens
        {"x": None},
        {"x": 1},
        {"x": (torch.ones(2, 4, 3),)},
        {"x": [torch.ones(2, 4, 3)]},
        {"y": torch.ones(2, 4, 3)},
    ],
)
def test_another_structure_has_another_key(other: dict[str, Any]) -> None:
    assert flatten(other)[0] != flatten({"x": torch.ones(2, 4, 3)})[0]


def test_true_and_one_differ() -> None:
    assert flatten({"x": True})[0] != flatten({"x": 1})[0]
    assert flatten({"x": True})[0] != flatten({"x": False})[0]


def test_named_tuples_are_refused() -> None:
    pair = namedtuple("Pair", "a b")
    with pytest.raises(CaptureError, match=r"a named tuple \(Pair\) as a block argument is not supported"):
        flatten({"x": pair(1, 2)})


def same(one: Any, other: Any) -> bool:
    if isinstance(one, torch.Tensor):
        return one is other
    if isinstance(one, dict):
        return list(one) == list(other) and all(same(one[k], other[k]) for k in one)
    if isinstance(one, list | tuple):
        return type(one) is type(other) and len(one) == len(other) and all(map(same, one, other))
    return bool(one == other) and type(one) is type(other)


class Variadic(torch.nn.Module):
    """Takes more than it names, as the blocks of HunyuanVideo do."""

    def forward(self, x: torch.Tensor, scale: float, *rest: torch.Tensor, **more: object) -> torch.Tensor:
        for other in rest:
            x = x + other
        return x * scale


def test_what_exceeds_the_parameters_is_bound_where_there_is_a_place_for_it() -> None:
    signature, x = Signature.of(Variadic.forward), torch.ones(2)
    assert signature.bind((x, 2.0), {}) == {"x": x, "scale": 2.0}
    bound = signature.bind((x, 2.0, x, x), {"flag": True})
    assert bound["rest"] == (x, x)
    args, kwargs = signature.spread(bound)
    assert (len(args), kwargs) == (4, {"flag": True})
    assert signature.spread(signature.bind((x,), {"scale": 2.0}))[0] == ()


def test_a_block_that_takes_more_is_captured() -> None:
    block, x = Variadic(), torch.arange(6.0).view(1, 2, 3)
    key, leaves = flatten(Signature.of(Variadic.forward).bind((x, 2.0, x + 1), {}))
    capture = capture_block(block, key, leaves)
    assert [str(n.target) for n in capture.graph.nodes if n.op == "placeholder"] == ["x", "scale", "rest_0"]
