"""What a JSON Schema accepts, in words: the second half of every error message."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, TypeAlias

from sdtm_fx.errors import nearest
from sdtm_fx.recipe.problems import KeyPath, show_choices

Node: TypeAlias = Mapping[str, Any]


@dataclass(frozen=True)
class Described:
    """Answers what is accepted at a key path of some data.

    Attributes:
        schema: JSON Schema of the whole.
        data: The data that the paths lead through; it decides between the alternatives of a union.
    """

    schema: Node
    data: object

    def at(self, path: KeyPath) -> Node | None:
        """Return the schema of the value at `path`, or None where the schema knows no such key."""
        node: Node = self.schema
        value: object = self.data
        for key in path:
            inner = _inside(self.choose(node, value), key)
            if inner is None:
                return None
            node, value = inner, item(value, key)
        return node

    def choose(self, node: Node, value: object) -> Node:
        """Return the alternative of `node` that `value` fits best, or `node` itself when it has none."""
        branches = self.branches(node)
        return max(branches, key=lambda branch: _fit(branch, value))

    def branches(self, node: Node) -> list[Node]:
        """Return the alternatives of a schema, references resolved; a schema without any is its own."""
        while "$ref" in node:
            node = self.schema["$defs"][node["$ref"].rpartition("/")[2]]
        for keyword in ("oneOf", "anyOf"):
            if keyword in node:
                return [branch for inner in node[keyword] for branch in self.branches(inner)]
        return [node]

    def is_union(self, path: KeyPath) -> bool:
        """Tell whether the schema at `path` has several alternatives beside null."""
        node = self.at(path)
        return node is not None and sum(b.get("type") != "null" for b in self.branches(node)) > 1

    def keys(self, path: KeyPath) -> list[str]:
        """Return the keys of the mapping at `path`."""
        node = self.at(path)
        value = self.data
        for key in path:
            value = item(value, key)
        return list(self.choose(node, value).get("properties", {})) if node is not None else []

    def tag(self, node: Node, value: object) -> tuple[str, list[object]] | None:
        """Return the key that tells the alternatives of `node` apart, and its accepted values.

        None when there is no such key, or when `value` does not use it and could do without.
        """
        constants: dict[str, list[object]] = {}
        branches = self.branches(node)
        for branch in branches:
            for key, inner in branch.get("properties", {}).items():
                if key in ("name", "curve"):
                    constants.setdefault(key, []).extend(_constants(inner))
        for key, choices in constants.items():
            everywhere = all(key in branch.get("properties", {}) for branch in branches)
            if everywhere or (isinstance(value, Mapping) and key in value):
                return key, choices
        return None

    def nearest_key(self, node: Node, value: Mapping[str, Any]) -> str:
        """Return a hint for the first key of `value` that no alternative of `node` knows."""
        known = {key for branch in self.branches(node) for key in branch.get("properties", {})}
        unknown = [key for key in value if key not in known]
        return nearest(unknown[0], sorted(known)) if unknown else ""

    def words(self, node: Node) -> str:
        """Describe what a schema accepts."""
        branches, phrases = self.branches(node), list[str]()
        named = self.tag(node, None) if len(branches) > 1 else None
        if named is not None:
            key, choices = named
            return f"a mapping with {key} {show_choices(choices)}"
        for branch in branches:
            phrase = self._phrase(branch)
            if phrase not in phrases:
                phrases.append(phrase)
        return " or ".join(phrases)

    def _phrase(self, node: Node) -> str:
        choices = _constants(node)
        if choices:
            return show_choices(choices)
        kind = node.get("type")
        if kind in ("integer", "number"):
            return _number(node, "an integer" if kind == "integer" else "a number")
        if kind == "string":
            return str(node.get("$comment", "text"))
        if kind == "array":
            return self._array(node)
        if kind == "object":
            keys = ", ".join(node.get("properties", {}))
            return f"a mapping with keys {keys}" if keys else "a mapping"
        return {"boolean": "true or false", "null": "null"}.get(str(kind), "anything")

    def _array(self, node: Node) -> str:
        if "prefixItems" in node:
            return f"a list [{', '.join(self.words(item) for item in node['prefixItems'])}]"
        least, most = node.get("minItems"), node.get("maxItems")
        size = f" of {least} to {most} items" if most else " of at least one item" if least else ""
        return f"a list{size}, each {self.words(node.get('items', {}))}"


def _inside(node: Node, key: str | int) -> Node | None:
    if isinstance(key, int):
        fixed = node.get("prefixItems", [])
        return fixed[key] if key < len(fixed) else node.get("items")
    if key in node.get("properties", {}):
        inner: Node = node["properties"][key]
        return inner
    extra = node.get("additionalProperties")
    return extra if isinstance(extra, Mapping) else None


def holds(value: object, key: str | int) -> bool:
    """Tell whether a mapping has a key, or a list an index."""
    if isinstance(value, list):
        return isinstance(key, int) and key < len(value)
    return isinstance(value, Mapping) and key in value


def item(value: Any, key: str | int) -> object:
    """Return what a mapping or list holds at a key or index, or None when it holds nothing there."""
    return value[key] if holds(value, key) else None


def _constants(node: Node) -> list[object]:
    return [node["const"]] if "const" in node else list(node.get("enum", []))


def _number(node: Node, noun: str) -> str:
    low, high = node.get("minimum"), node.get("maximum")
    above, below = node.get("exclusiveMinimum"), node.get("exclusiveMaximum")
    lower = f" from {low:g}" if low is not None else f" above {above:g}" if above is not None else ""
    upper = f" to {high:g}" if high is not None else f" to below {below:g}" if below is not None else ""
    if above is not None and high is not None:
        upper = f", at most {high:g}"
    return noun + lower + upper


def _fit(branch: Node, value: object) -> tuple[bool, int]:
    """Rank an alternative: does its type fit, and how many keys and constants of the value does it know."""
    if isinstance(value, Mapping):
        properties = branch.get("properties", {})
        known = 0
        for key, inner in properties.items():
            if key in value:
                choices = _constants(inner)
                known += 1 if not choices else 100 if value[key] in choices else -100
        return branch.get("type") == "object", known
    kinds = {
        bool: "boolean",
        int: "integer",
        float: "number",
        str: "string",
        list: "array",
        type(None): "null",
    }
    return branch.get("type") == kinds.get(type(value)), 0
