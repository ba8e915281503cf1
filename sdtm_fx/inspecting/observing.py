"""One observation of a model: what happens in a call, with every length as an equation."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

import torch

from sdtm_fx.capture.arguments import Signature
from sdtm_fx.errors import InspectionError
from sdtm_fx.inspecting.arguments import CallSizes
from sdtm_fx.inspecting.calling import FoundCall
from sdtm_fx.inspecting.events import Event, Shape, What, record
from sdtm_fx.inspecting.lengths import Length, other_sizes, solve

Lengths = tuple[Length | None, ...]


@dataclass(frozen=True)
class Seen:
    """An event with lengths in place of numbers.

    Attributes:
        what: As in `Event`.
        path: As in `Event`.
        inputs: Of each tensor that went in, its dimensions; None: a number that follows no equation.
        outputs: Alike, of what came out.
        note: As in `Event`.
    """

    what: What
    path: str
    inputs: Mapping[str, Lengths]
    outputs: Mapping[str, Lengths]
    note: int


@dataclass(frozen=True)
class Observation:
    """What was seen in the calls of a model.

    Attributes:
        call: The example call.
        seen: The events in order.
        calls: Those of leaving a module, by its path.
    """

    call: FoundCall
    seen: tuple[Seen, ...]
    calls: Mapping[str, tuple[Seen, ...]]

    def within(self, path: str, *what: What) -> list[Seen]:
        """The events of a kind in a module or below it."""
        return [s for s in self.seen if s.what in what and (s.path == path or s.path.startswith(f"{path}."))]


AttentionKind = Literal["softmax", "linear"]


@dataclass(frozen=True)
class AttentionCall:
    """One computation of attention.

    Attributes:
        path: The module in which it runs.
        kind: ``softmax``, or ``linear`` where keys and values are multiplied first.
        queries: Their length.
        keys: Their length.
    """

    path: str
    kind: AttentionKind
    queries: Length
    keys: Length


def observe(model: torch.nn.Module, call: FoundCall) -> Observation:
    """Run a model at several sizes and read off what follows what.

    Args:
        model: The model on meta.
        call: A call that runs.

    Raises:
        InspectionError: It does not run at another size, or does other things there.
    """
    sizes = other_sizes(call.sizes)
    runs = [_comparable(_run(model, call, size)) for size in sizes]
    for size, run in zip(sizes[1:], runs[1:], strict=True):
        if [(e.what, e.path) for e in run] != [(e.what, e.path) for e in runs[0]]:
            raise InspectionError(
                f"{type(model).__name__} calls other modules at {size.height}x{size.width} and {size.text} tokens of "
                f"text than at {sizes[0].height}x{sizes[0].width} and {sizes[0].text}; lengths cannot be compared"
            )
    seen = tuple(_merge(events, sizes) for events in zip(*runs, strict=True))
    calls: dict[str, list[Seen]] = defaultdict(list)
    for event in seen:
        if event.what == "leave":
            calls[event.path].append(event)
    return Observation(call, seen, {path: tuple(found) for path, found in calls.items()})


def _run(model: torch.nn.Module, call: FoundCall, size: CallSizes) -> list[Event]:
    try:
        with call.shapes():
            return record(model, call.values(size))
    except Exception as error:
        raise InspectionError(
            f"{type(model).__name__} runs at {call.sizes.height}x{call.sizes.width} with {call.sizes.text} tokens of "
            f"text, but not at {size.height}x{size.width} with {size.text}: {type(error).__name__}: {error}"
        ) from error


def _comparable(events: list[Event]) -> list[Event]:
    """Without joins of what is no sequence of the batch: tables that are made in one call and kept for the next."""
    return [e for e in events if e.what != "cat" or len(e.out.get("", ())) == 3]


def _merge(events: tuple[Event, ...], sizes: tuple[CallSizes, ...]) -> Seen:
    first = events[0]
    inputs = {n: _lengths([e.shapes.get(n, ()) for e in events], sizes) for n in first.shapes}
    outputs = {n: _lengths([e.out.get(n, ()) for e in events], sizes) for n in first.out}
    return Seen(first.what, first.path, inputs, outputs, first.note)


def _lengths(shapes: list[Shape], sizes: tuple[CallSizes, ...]) -> Lengths:
    if len({len(s) for s in shapes}) != 1:
        return ()
    return tuple(solve(values, sizes) for values in zip(*shapes, strict=True))


def attention_calls(observation: Observation) -> list[AttentionCall]:
    """Find attention by what is computed: the operation itself, a softmax over tokens, or products over tokens."""
    found: list[AttentionCall] = []
    for event in observation.seen:
        if event.what == "attention":
            query, key = (
                event.inputs.get(str(i), event.inputs.get(n, ())) for i, n in enumerate(("query", "key"))
            )
            if query and key and query[-2] is not None and key[-2] is not None:
                found.append(AttentionCall(event.path, "softmax", query[-2], key[-2]))
        if event.what == "softmax":
            out = event.outputs.get("", ())
            if (
                len(out) >= 3
                and out[-1] is not None
                and out[-2] is not None
                and _varies(out[-1])
                and _varies(out[-2])
            ):
                found.append(AttentionCall(event.path, "softmax", out[-2], out[-1]))
    exact = {a.path for a in found}
    for event in observation.seen:
        inner = event.inputs.get("0", ())
        over_tokens = len(inner) >= 3 and inner[-1] is not None and inner[-1].image > 0
        if event.what == "product" and over_tokens and event.path not in exact:
            assert inner[-1] is not None
            found.append(AttentionCall(event.path, "linear", inner[-1], inner[-1]))
            exact.add(event.path)
    return found


def _varies(length: Length) -> bool:
    return bool(length.image or length.text)


def block_arguments(
    model: torch.nn.Module, call: FoundCall, paths: set[str]
) -> dict[str, list[dict[str, Any]]]:
    """The arguments of every call of some modules, by name, in the order of execution."""
    wanted = {id(model.get_submodule(path)): path for path in paths}
    found: dict[str, list[dict[str, Any]]] = {}
    signatures = {path: Signature.of(type(model.get_submodule(path)).forward) for path in paths}

    def note(module: torch.nn.Module, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> None:
        path = wanted.get(id(module))
        if path is not None:
            found.setdefault(path, []).append(signatures[path].bind(args, kwargs))

    handles = [model.get_submodule(path).register_forward_pre_hook(note, with_kwargs=True) for path in paths]
    try:
        with call.shapes():
            model(**call.values(call.sizes))
    finally:
        for handle in handles:
            handle.remove()
    return found
