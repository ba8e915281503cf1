"""Finding the arguments of an example call: by trying what the rules say, on a model without weights."""

from __future__ import annotations

import contextlib
import inspect
import itertools
import linecache
import re
import traceback
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch.nn.modules.module import register_module_forward_hook

from sdtm_fx.capture.whole_numbers import shapes_alone
from sdtm_fx.errors import InspectionError, nearest
from sdtm_fx.inspecting.arguments import Argument, CallSizes, make
from sdtm_fx.inspecting.facts import Facts, fixed_lengths, parameters_of
from sdtm_fx.inspecting.lengths import other_sizes
from sdtm_fx.inspecting.rules import Choice, choices_for

_MOST_TRIES = 250

SIZES = tuple(
    CallSizes(2, 7, *sides)
    for sides in ((32, 16), (16, 8), (64, 32), (8, 4), (32, 32), (16, 16), (64, 64), (8, 8))
)
"""Sizes at which a call is looked for, in order: oblong ones first, since some models take only squares."""


@dataclass(frozen=True)
class FoundCall:
    """The arguments of a call that runs.

    Attributes:
        arguments: By name; a dot leads into a mapping.
        sizes: A size at which it runs.
        config: The config that dimensions name.
        tries: Calls that were tried.
        as_tuple: Whether the model is told to return a tuple; those that return nothing else take no such argument.
        reads: Whether the forward reads whole numbers on the host, such as lengths that it sums from a mask.
    """

    arguments: Mapping[str, Argument]
    sizes: CallSizes
    config: Mapping[str, Any]
    tries: int = 0
    as_tuple: bool = True
    reads: bool = False

    @contextlib.contextmanager
    def shapes(self) -> Iterator[None]:
        """Where the call is made and run on meta: what the forward reads is known there."""
        with torch.no_grad(), shapes_alone() if self.reads else contextlib.nullcontext():
            yield

    def values(
        self, sizes: CallSizes, config: Mapping[str, Any] | None = None, device: str = "meta"
    ) -> dict[str, Any]:
        """The keyword arguments of the call at a size."""
        where = torch.device(device)
        call: dict[str, Any] = {"return_dict": False} if self.as_tuple else {}
        for seed, (name, argument) in enumerate(self.arguments.items()):
            *outer, key = name.split(".")
            owner = call
            for part in outer:
                owner = owner.setdefault(part, {})
            owner[key] = make(argument, sizes, self.config if config is None else config, where, seed)
        return call


@dataclass(frozen=True)
class _Attempt:
    """One try: how many modules ran to their end, the line of forward that it came to, what stopped it, and whether
    whole numbers were read on the host."""

    progress: tuple[int, int]
    error: Exception | None
    reads: bool


def find_call(
    model: torch.nn.Module, config: Mapping[str, Any], given: Mapping[str, Argument] | None = None
) -> FoundCall:
    """Find arguments with which a model's forward runs.

    Arguments are changed one at a time, to the choice with which most modules run to their end; where no one change
    gets further, two at a time.

    Args:
        model: The model on meta; few layers suffice.
        config: Its config.
        given: Arguments that are known (`given.parse_inputs`).

    Raises:
        InspectionError: An argument is given that forward does not have, none is known for a required one, or
            nothing that was tried runs; says which arguments the failing line reads.
    """
    variants = [
        _options(model, config, given or {}, fixed)
        for fixed in (False, True)[: 1 + bool(fixed_lengths(config))]
    ]
    failures: list[tuple[_Attempt, dict[str, Choice], CallSizes]] = []
    tries = 0
    for sizes, options in itertools.product(_sizes(config), variants):
        search = _Search(model, config, sizes, options)
        chosen, attempt = search.run()
        tries += search.tries
        if attempt.error is None:
            returns_dicts = _returns_dicts(model)
            found = FoundCall(_merge(chosen.values()), sizes, config, tries, returns_dicts, attempt.reads)
            # It must run at the sizes that lengths are read at, too: tables of positions may be short.
            rest = [_attempt(model, replace(found, sizes=other)) for other in other_sizes(sizes)[1:]]
            attempt = next((a for a in rest if a.error is not None), attempt)
        if attempt.error is None:
            return found
        failures.append((attempt, chosen, sizes))
    attempt, chosen, sizes = max(failures, key=lambda f: f[0].progress)
    raise InspectionError(_explain(model, attempt, chosen, sizes, tries))


def _sizes(config: Mapping[str, Any]) -> Iterator[CallSizes]:
    patch = config.get("patch_size")
    edge = patch if type(patch) is int else patch[-1] if isinstance(patch, list | tuple) and patch else 1
    for sizes in SIZES:
        yield CallSizes(sizes.batch, sizes.text, sizes.height, sizes.width, sizes.frames, int(edge))


def _options(
    model: torch.nn.Module, config: Mapping[str, Any], given: Mapping[str, Argument], fixed_text: bool
) -> dict[str, list[Choice]]:
    parameters = list(parameters_of(type(model).forward))
    own = tuple(name for name, _ in model.named_children())
    facts = Facts(config, tuple(p.name for p in parameters), fixed_text, own)
    for name in given:
        if name.partition(".")[0] not in facts.names:
            raise InspectionError(
                f"--input {name}: {type(model).__name__}.forward has no such argument; it has "
                f"{', '.join(facts.names)}{nearest(name, facts.names)}"
            )
    options: dict[str, list[Choice]] = {}
    for parameter in parameters:
        mine = {n: a for n, a in given.items() if n.partition(".")[0] == parameter.name}
        found: list[Choice] | None = [mine] if mine else choices_for(parameter, facts)
        if not found:
            raise InspectionError(
                f"{type(model).__name__}.forward needs {parameter.name!r} ({_annotation(parameter)}), of which nothing "
                f"is known; give it: --input {parameter.name}=batch,16 (sizes: batch, text, height, width, tokens, a "
                "field of the config; :zeros, :ones, :grid_ids or :int behind)"
            )
        options[parameter.name] = found
    return options


class _Search:
    """Looks for choices at one size."""

    def __init__(
        self,
        model: torch.nn.Module,
        config: Mapping[str, Any],
        sizes: CallSizes,
        options: Mapping[str, Sequence[Choice]],
    ) -> None:
        self.model, self.config, self.sizes, self.options = model, config, sizes, options
        self.tries = 0
        self._seen: dict[tuple[int, ...], _Attempt] = {}

    def run(self) -> tuple[dict[str, Choice], _Attempt]:
        """Return the last choices, and how they went."""
        state = dict.fromkeys(self.options, 0)
        best = self._try(state)
        while best.error is not None and self.tries < _MOST_TRIES:
            # Arguments that the failing line reads come first, in pairs too: all pairs are many.
            blamed = _blamed(self.model, best, self.options)
            further = (
                self._step(state, best, 1, blamed)
                or self._step(state, best, 2, blamed)
                or self._step(state, best, 1, tuple(state))
                or self._step(state, best, 2, tuple(state))
            )
            if further is None:
                break
            state, best = further
        return {name: self.options[name][i] for name, i in state.items()}, best

    def _step(
        self, state: dict[str, int], best: _Attempt, changes: int, among: Sequence[str]
    ) -> tuple[dict[str, int], _Attempt] | None:
        """The best state that differs in so many of some arguments, if it gets further."""
        reached: tuple[dict[str, int], _Attempt] | None = None
        for names in itertools.combinations([n for n in among if len(self.options[n]) > 1], changes):
            for picks in itertools.product(*(range(len(self.options[n])) for n in names)):
                if self.tries >= _MOST_TRIES:
                    return reached
                changed = {**state, **dict(zip(names, picks, strict=True))}
                attempt = self._try(changed)
                if attempt.error is None:
                    return changed, attempt
                if attempt.progress > (best if reached is None else reached[1]).progress:
                    reached = changed, attempt
        return reached

    def _try(self, state: Mapping[str, int]) -> _Attempt:
        key = tuple(state.values())
        if key not in self._seen:
            self.tries += 1
            chosen = _merge(self.options[name][i] for name, i in state.items())
            call = FoundCall(chosen, self.sizes, self.config, as_tuple=_returns_dicts(self.model))
            self._seen[key] = _attempt(self.model, call)
        return self._seen[key]


def _attempt(model: torch.nn.Module, call: FoundCall) -> _Attempt:
    with _finished_modules() as finished:
        try:
            with call.shapes():
                model(**call.values(call.sizes))
        except Exception as error:  # whatever a forward raises says that the arguments are not right
            if isinstance(error, NotImplementedError) and not call.reads:  # a value, of which meta has none
                return _attempt(model, replace(call, reads=True))
            frames = _own_frames(model, error)
            return _Attempt((len(finished), (frames[0].lineno or 0) if frames else 0), error, call.reads)
    return _Attempt((len(finished), 0), None, call.reads)


def _returns_dicts(model: torch.nn.Module) -> bool:
    return "return_dict" in inspect.signature(inspect.unwrap(type(model).forward)).parameters


def _own_frames(model: torch.nn.Module, error: Exception) -> list[traceback.FrameSummary]:
    """Where a model's own forward was when it failed."""
    own = inspect.getsourcefile(inspect.unwrap(type(model).forward))
    return [f for f in traceback.extract_tb(error.__traceback__) if f.filename == own and f.name == "forward"]


def _line(model: torch.nn.Module, attempt: _Attempt) -> str:
    """The statement of a model's own forward that a call stopped in."""
    frames = _own_frames(model, attempt.error) if attempt.error is not None else []
    if not frames:
        return ""
    first = frames[0].lineno or 0
    last = getattr(frames[0], "end_lineno", None) or first  # Python 3.11 and later
    lines = (linecache.getline(frames[0].filename, number).strip() for number in range(first, last + 1))
    return " ".join(lines)


def _blamed(model: torch.nn.Module, attempt: _Attempt, names: Iterable[str]) -> tuple[str, ...]:
    """The arguments that the statement reads."""
    line = _line(model, attempt)
    return tuple(n for n in names if re.search(rf"\b{re.escape(n)}\b", line))


@contextlib.contextmanager
def _finished_modules() -> Iterator[list[str]]:
    finished: list[str] = []
    handle = register_module_forward_hook(lambda module, *_: finished.append(type(module).__name__))
    try:
        yield finished
    finally:
        handle.remove()


def _merge(choices: Iterator[Choice] | Any) -> dict[str, Argument]:
    return {name: argument for choice in choices for name, argument in choice.items()}


def _explain(
    model: torch.nn.Module, attempt: _Attempt, chosen: Mapping[str, Choice], sizes: CallSizes, tries: int
) -> str:
    """Say where the call that got furthest stopped, and which arguments the line there reads."""
    error, name = attempt.error, type(model).__name__
    assert error is not None
    line, blamed = _line(model, attempt), _blamed(model, attempt, chosen)
    tried = {n: a.says() for n, a in _merge(chosen.values()).items()}
    listed = ", ".join(f"{n}={says}" for n, says in tried.items())
    which = f"; the line reads {', '.join(blamed)}" if blamed else ""
    first = (*blamed, *tried)[0]
    return (
        f"no example call of {name} was found in {tries} tries. The one that got furthest, {listed} at "
        f"{sizes.height}x{sizes.width}, stops in {name}.forward at `{line or 'its first line'}`{which}: "
        f"{type(error).__name__}: {error}. Give or correct arguments: --input {first}=batch,text,16 (sizes: batch, "
        "text, height, width, frames, tokens, a field of the config; :zeros, :ones, :grid_ids or :int behind)"
    )


def _annotation(parameter: inspect.Parameter) -> str:
    if parameter.annotation is parameter.empty:
        return "no annotation"
    return getattr(parameter.annotation, "__name__", str(parameter.annotation))
