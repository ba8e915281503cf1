"""One recipe on top of another: mappings are merged, everything else is replaced, and lines stay known."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from sdtm_fx.errors import nearest
from sdtm_fx.recipe.problems import KeyPath, misfit, recipe_error, show_choices
from sdtm_fx.recipe.ratio import ratio_tag
from sdtm_fx.recipe.tokens import grid_tag
from sdtm_fx.recipe.yaml_source import Mark, Source

EVERY = "*"

# Mappings that are one of several alternatives are merged only within the same alternative.
_ALTERNATIVES: Mapping[str | int, Callable[[Any], object]] = {
    "ratio": ratio_tag,
    "grid": grid_tag,
    "method": lambda method: method.get("name"),
}
# Lists whose items have a name: a list replaces them, a mapping changes the items that it names.
_NAMED_ITEMS: Mapping[KeyPath, str] = {("sites",): "id", ("spans",): "id", ("stages",): "name"}


def merge(base: Source, change: Source) -> Source:
    """Return `base` with `change` laid over it.

    A mapping is merged key by key; a mapping at ``sites``, ``spans`` or ``stages`` changes the items that it names by
    id or name, by index, or by ``*`` for all; anything else replaces what is there. A ratio, grid or method
    of another kind replaces the one below it.

    Raises:
        RecipeError: `change` names a site, span or stage that `base` does not have.
    """
    merging = _Merging(change, dict(base.marks))
    data = merging.mapping(base.data, change.data, (), ())
    return Source(change.label, data, merging.marks)


class _Merging:
    def __init__(self, change: Source, marks: dict[KeyPath, Mark]) -> None:
        self.change = change
        self.marks = marks

    def value(self, base: object, new: object, source: KeyPath, target: KeyPath) -> object:
        """Return `new`, found at `source` of the change, laid over `base` at `target` of the result."""
        if isinstance(new, Mapping) and isinstance(base, list) and target in _NAMED_ITEMS:
            return self.items(base, new, source, target)
        if isinstance(new, Mapping) and isinstance(base, Mapping) and not _another_kind(base, new, target):
            return self.mapping(base, new, source, target)
        self.move_marks(source, target)
        return new

    def mapping(
        self, base: Mapping[str, object], new: Mapping[str, object], source: KeyPath, target: KeyPath
    ) -> dict[str, object]:
        self.mark(source, target)
        merged = dict(base)
        for key, value in new.items():
            merged[key] = self.value(base.get(key), value, (*source, key), (*target, key))
        return merged

    def items(
        self, base: list[object], new: Mapping[str, object], source: KeyPath, target: KeyPath
    ) -> list[object]:
        merged = list(base)
        for key, value in new.items():
            for index in self.indices(merged, key, (*source, key), _NAMED_ITEMS[target]):
                merged[index] = self.value(merged[index], value, (*source, key), (*target, index))
        return merged

    def indices(self, items: list[object], key: str, source: KeyPath, name: str) -> list[int]:
        if key == EVERY:
            return list(range(len(items)))
        if key.isdecimal() and int(key) < len(items):
            return [int(key)]
        names = [str(item.get(name)) if isinstance(item, Mapping) else "" for item in items]
        if key not in names:
            accepted = f"{show_choices(names)}, an index below {len(items)}, or '*'"
            problem = misfit(source, f"the unknown {name} {key!r}", accepted, nearest(key, names))
            raise recipe_error([(self.change.where(source), problem)])
        return [names.index(key)]

    def mark(self, source: KeyPath, target: KeyPath) -> None:
        if source in self.change.marks:
            self.marks[target] = self.change.marks[source]

    def move_marks(self, source: KeyPath, target: KeyPath) -> None:
        for path in [path for path in self.marks if path[: len(target)] == target]:
            del self.marks[path]
        for path, mark in self.change.marks.items():
            if path[: len(source)] == source:
                self.marks[(*target, *path[len(source) :])] = mark


def _another_kind(base: Mapping[str, object], new: Mapping[str, object], target: KeyPath) -> bool:
    kind = _ALTERNATIVES.get(target[-1]) if target else None
    if kind is None:
        return False
    return kind(new) not in (None, kind(base))


def nested(path: str, value: object) -> dict[str, object]:
    """Return the mapping that a dotted key path stands for: ``a.b`` and 1 give ``{a: {b: 1}}``."""
    first, _, rest = path.partition(".")
    return {first: nested(rest, value) if rest else value}
