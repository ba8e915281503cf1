"""The arguments of a block call: a hashable key for their structure, and the values that vary."""

from __future__ import annotations

import inspect
import keyword
import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import torch

from sdtm_fx.errors import CaptureError

Leaf = torch.Tensor | int | float
Key = tuple[Any, ...]


@dataclass(frozen=True)
class Signature:
    """The parameters of a forward: their names in order and their defaults.

    Read once per class; binding is then a dictionary merge, cheap enough for every call and plain
    enough for torch.compile.

    Attributes:
        names: Names of the parameters, in order.
        defaults: Their defaults.
        open_ended: Whether there is a ``**kwargs``.
        extra: Name of a ``*args``, None where there is none; bound to a tuple where more is given than parameters take.
    """

    names: tuple[str, ...]
    defaults: Mapping[str, Any]
    open_ended: bool
    extra: str | None = None

    @staticmethod
    def of(forward: Callable[..., Any]) -> Signature:
        """Read the signature of an unbound forward, looking through decorators."""
        parameters = list(inspect.signature(inspect.unwrap(forward)).parameters.values())[1:]
        named = [p for p in parameters if p.kind not in (p.VAR_KEYWORD, p.VAR_POSITIONAL)]
        return Signature(
            names=tuple(p.name for p in named),
            defaults={p.name: p.default for p in named if p.default is not p.empty},
            open_ended=any(p.kind is p.VAR_KEYWORD for p in parameters),
            extra=next((p.name for p in parameters if p.kind is p.VAR_POSITIONAL), None),
        )

    def bind(self, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> dict[str, Any]:
        """Return every argument by name, defaults filled in, in the order of the signature.

        Raises:
            TypeError: An argument is missing, unknown or given twice, as Python itself would say.
        """
        if len(args) > len(self.names) and self.extra is None:
            raise TypeError(f"takes {len(self.names)} arguments, {len(args)} were given")
        # Equal lengths: torch 2.8 compiles no zip of others, whatever it is told.
        given = dict(zip(self.names[: len(args)], args[: len(self.names)], strict=True))
        for name, value in kwargs.items():
            if name in given:
                raise TypeError(f"got multiple values for argument {name!r}")
            if name not in self.names and not self.open_ended:
                raise TypeError(f"got an unexpected argument {name!r}")
            given[name] = value
        missing = [n for n in self.names if n not in given and n not in self.defaults]
        if missing:
            raise TypeError(f"missing arguments: {', '.join(missing)}")
        bound = {n: given[n] if n in given else self.defaults[n] for n in self.names}
        bound.update({n: v for n, v in given.items() if n not in bound})
        if self.extra is not None and len(args) > len(self.names):
            bound[self.extra] = tuple(args[len(self.names) :])
        return bound

    def spread(self, bound: Mapping[str, Any]) -> tuple[tuple[Any, ...], dict[str, Any]]:
        """Return bound arguments as a call takes them: the inverse of `bind`."""
        if self.extra is None or self.extra not in bound:
            return (), dict(bound)
        named = tuple(bound[name] for name in self.names)
        rest = {n: v for n, v in bound.items() if n not in self.names and n != self.extra}
        return (*named, *bound[self.extra]), rest


def flatten(arguments: Mapping[str, Any]) -> tuple[Key, list[Leaf]]:
    """Split bound arguments into a key of their structure and the list of varying leaves.

    Tensors, ints and floats are leaves: they become placeholders of a graph. Everything else (None,
    bool, str, an enum) is structure: another value is another graph. A tensor's dtype and rank are
    structure too, since forwards branch on them; so is whether it holds one value for all tokens
    ([B, 1, ...]), since passes move work on such values.
    """
    leaves: list[Leaf] = []
    key = tuple((name, _flatten(value, leaves)) for name, value in arguments.items())
    return key, leaves


def _flatten(value: Any, leaves: list[Leaf]) -> Key:
    if isinstance(value, torch.Tensor):
        leaves.append(value)
        return ("tensor", value.dtype, value.ndim, value.ndim > 2 and value.shape[1] == 1)
    if isinstance(value, bool) or value is None:
        return ("constant", value)
    if isinstance(value, (int, float)):
        leaves.append(value)
        return ("float",) if isinstance(value, float) else ("int",)  # a symbolic int counts as one
    if isinstance(value, (list, tuple)):
        if hasattr(value, "_fields"):
            raise CaptureError(f"a named tuple ({type(value).__name__}) as a block argument is not supported")
        return (type(value), tuple(_flatten(v, leaves) for v in value))
    if isinstance(value, dict):
        return (dict, tuple((k, _flatten(v, leaves)) for k, v in value.items()))
    return ("constant", value)


def unflatten(key: Key, leaves: Iterator[Any]) -> dict[str, Any]:
    """Rebuild the arguments of `flatten` around other leaves (the proxies of a trace)."""
    return {name: _unflatten(part, leaves) for name, part in key}


def _unflatten(part: Key, leaves: Iterator[Any]) -> Any:
    kind = part[0]
    if kind == "constant":
        return part[1]
    if kind in ("tensor", "int", "float"):
        return next(leaves)
    if kind is dict:
        return {k: _unflatten(v, leaves) for k, v in part[1]}
    return kind(_unflatten(v, leaves) for v in part[1])


def leaf_names(key: Key) -> list[str]:
    """Name the leaves of a key after their place: ``image_rotary_emb_0`` is the first of a tuple.

    Every name is a Python identifier, and no two are the same.
    """
    arguments = {name for name, _ in key}
    names: list[str] = []
    for argument, part in key:
        places: list[str] = []
        _leaf_names(argument, part, places)
        for place in places:
            name = re.sub(r"\W|^(?=\d)", "_", place)
            while name in names or keyword.iskeyword(name) or name in arguments - {argument}:
                name += "_"
            names.append(name)
    return names


def _leaf_names(name: str, part: Key, names: list[str]) -> None:
    kind = part[0]
    if kind in ("tensor", "int", "float"):
        names.append(name)
    elif kind is dict:
        for k, v in part[1]:
            _leaf_names(f"{name}_{k}", v, names)
    elif kind != "constant":
        for i, v in enumerate(part[1]):
            _leaf_names(f"{name}_{i}", v, names)


def pick_leaves(key: Key, arguments: Mapping[str, Any]) -> list[Any]:
    """The leaves of arguments that have the structure of `key` but hold other things (nodes of a graph)."""
    picked: list[Any] = []
    for name, part in key:
        _pick_leaves(part, arguments[name], picked)
    return picked


def _pick_leaves(part: Key, value: Any, picked: list[Any]) -> None:
    kind = part[0]
    if kind in ("tensor", "int", "float"):
        picked.append(value)
    elif kind is dict:
        for k, v in part[1]:
            _pick_leaves(v, value[k], picked)
    elif kind != "constant":
        for inner, item in zip(part[1], value, strict=True):
            _pick_leaves(inner, item, picked)
