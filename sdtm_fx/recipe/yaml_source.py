"""Strict YAML: one document of plain mappings, lists and scalars, with the line of every key.

The scalars are those of the YAML 1.2 core schema, and fewer: ``true``/``false`` are the only booleans,
``1e-3`` is a number, ``no``, ``on`` and ``12:30`` are text. Anchors, aliases, tags, duplicate keys, a second
document and texts of unreasonable size are errors.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field

import yaml

from sdtm_fx.errors import RecipeError
from sdtm_fx.recipe.problems import KeyPath, misfit, recipe_error

MAX_CHARACTERS = 64 * 1024
MAX_DEPTH = 16

_INTEGER = re.compile(r"[-+]?[0-9]+")
_NUMBER = re.compile(r"[-+]?(\.[0-9]+|[0-9]+(\.[0-9]*)?)([eE][-+]?[0-9]+)?")
_WORDS: Mapping[str, bool | None] = {"true": True, "false": False, "null": None, "~": None, "": None}
_PLAIN_ONLY = "plain mappings, lists and scalars, without anchors, aliases or tags"


@dataclass(frozen=True)
class Mark:
    """Where a key or list item was written: a file (or another label) and a line counted from 1."""

    label: str
    line: int


@dataclass(frozen=True)
class Source:
    """Plain data of a recipe and where each part of it was written.

    Attributes:
        label: File name, or what else to call the whole in errors.
        data: Mappings, lists and scalars.
        marks: Key path to the place it was written; empty for data that no file holds.
    """

    label: str
    data: dict[str, object]
    marks: Mapping[KeyPath, Mark] = field(default_factory=dict)

    def where(self, path: KeyPath) -> str:
        """Return ``file:line`` of the closest written key at or above `path`, or the label alone."""
        for length in range(len(path), -1, -1):
            mark = self.marks.get(path[:length])
            if mark is not None:
                return f"{mark.label}:{mark.line}"
        return self.label


def read_scalar(text: str) -> object:
    """Return the value of an unquoted scalar.

    Args:
        text: What stands in the file, without surrounding space.

    Returns:
        A bool, None, an int, a float, or the text itself. Never infinity or NaN, which stay text.
    """
    if text in _WORDS:
        return _WORDS[text]
    if _INTEGER.fullmatch(text) and len(text) <= 20:
        return int(text)
    if _NUMBER.fullmatch(text) and math.isfinite(float(text)):
        return float(text)
    return text


def read_yaml(text: str, label: str) -> Source:
    """Parse one YAML document whose top level is a mapping.

    Args:
        text: The document.
        label: File name used in errors.

    Raises:
        RecipeError: The text is not YAML, or uses more of YAML than recipes may.
    """
    if len(text) > MAX_CHARACTERS:
        problem = misfit((), f"{len(text)} characters", f"at most {MAX_CHARACTERS}")
        raise recipe_error([(label, problem)])
    try:
        return _Builder(label, yaml.parse(text, Loader=yaml.BaseLoader)).document()
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        where = f"{label}:{mark.line + 1}" if mark else label
        reason = ", ".join(part for part in (error.context, error.problem) if part)
        raise RecipeError(f"{where}: found text that is not YAML ({reason}); accepted YAML") from error
    except yaml.YAMLError as error:
        raise RecipeError(f"{label}: found text that is not YAML ({error}); accepted YAML") from error


class _Builder:
    """Turns parser events into data, and refuses what a recipe has no use for."""

    def __init__(self, label: str, events: Iterator[yaml.Event]) -> None:
        self.label = label
        self.events = events
        self.marks: dict[KeyPath, Mark] = {}

    def document(self) -> Source:
        event = self.next(())
        while isinstance(event, (yaml.StreamStartEvent, yaml.DocumentStartEvent)):
            event = self.next(())
        if not isinstance(event, yaml.MappingStartEvent):
            found = {yaml.StreamEndEvent: "an empty text", yaml.SequenceStartEvent: "a list"}.get(
                type(event), "a scalar"
            )
            raise self.error((), event, found, "a mapping")
        data = self.mapping((), event)
        self.next(())  # the end of the document
        event = self.next(())
        if not isinstance(event, yaml.StreamEndEvent):
            raise self.error((), event, "a second document", "one document")
        return Source(self.label, data, self.marks)

    def next(self, path: KeyPath) -> yaml.Event:
        event = next(self.events)
        anchor, tag = getattr(event, "anchor", None), getattr(event, "tag", None)
        if isinstance(event, yaml.AliasEvent):
            raise self.error(path, event, f"the alias *{anchor}", _PLAIN_ONLY)
        if anchor is not None:
            raise self.error(path, event, f"the anchor &{anchor}", _PLAIN_ONLY)
        if tag is not None:
            raise self.error(path, event, f"the tag {tag}", _PLAIN_ONLY)
        return event

    def value(self, path: KeyPath, event: yaml.Event) -> object:
        if len(path) > MAX_DEPTH:
            raise self.error(path, event, f"more than {MAX_DEPTH} levels", "fewer levels")
        if isinstance(event, yaml.MappingStartEvent):
            return self.mapping(path, event)
        if isinstance(event, yaml.SequenceStartEvent):
            return self.sequence(path)
        if not isinstance(event, yaml.ScalarEvent):
            raise self.error(path, event, "no value", "a value")
        return read_scalar(event.value) if event.style is None else str(event.value)

    def mapping(self, path: KeyPath, start: yaml.Event) -> dict[str, object]:
        self.marks.setdefault(path, self.mark(start))
        data: dict[str, object] = {}
        while not isinstance(event := self.next(path), yaml.MappingEndEvent):
            if not isinstance(event, yaml.ScalarEvent) or not event.value:
                raise self.error(path, event, "a key that is not text", "text as key")
            inner = (*path, event.value)
            if event.value in data:
                first = self.marks[inner].line
                raise self.error(
                    inner, event, f"the key a second time (first on line {first})", "each key once"
                )
            self.marks[inner] = self.mark(event)
            data[event.value] = self.value(inner, self.next(inner))
        return data

    def sequence(self, path: KeyPath) -> list[object]:
        items: list[object] = []
        while not isinstance(event := self.next(path), yaml.SequenceEndEvent):
            inner = (*path, len(items))
            self.marks[inner] = self.mark(event)
            items.append(self.value(inner, event))
        return items

    def mark(self, event: yaml.Event) -> Mark:
        return Mark(self.label, event.start_mark.line + 1 if event.start_mark else 1)

    def error(self, path: KeyPath, event: yaml.Event, found: str, accepted: str) -> RecipeError:
        mark = self.mark(event)
        return recipe_error([(f"{mark.label}:{mark.line}", misfit(path, found, accepted))])
