"""The page about the merging methods: what each does, its formula, options and cost, from the docstrings."""

from __future__ import annotations

import dataclasses
import inspect
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from docstring_parser import Docstring
from docstring_parser.google import DEFAULT_SECTIONS, GoogleParser, Section, SectionType
from pydantic import TypeAdapter

from sdtm_fx.cost.planning import method_effort
from sdtm_fx.errors import SdtmFxError
from sdtm_fx.grids import TokenGrid, tokens_on
from sdtm_fx.methods.base import Method

GRIDS = ((64, 64), (128, 128))
"""Token grids that costs are given for: 1024 and 2048 px."""

WIDTH = 1536
"""Channels that costs are given for: those of SD3 medium."""

TEXT = 333
"""Text tokens beside them."""

_SECTIONS = ("Formula", "Use")
_PARSER = GoogleParser([*DEFAULT_SECTIONS, *(Section(s, s.lower(), SectionType.SINGULAR) for s in _SECTIONS)])

_HEAD = """\
# Merging methods

What may stand under `method` in a stage of a recipe. This page is written by `sdtm-fx methods page`, from the
docstrings and the cost model.

A *window* or *cell* holds K tokens. *P_fre* is the age of a token, the steps since it was last alone in its slot,
over the mean age of its image. *Cost* is what one plan takes, with half of the tokens removed or as many as the
method can, for 1024 and 2048 px on a model as wide as SD3 medium ({width} channels, bfloat16): multiply-accumulates
of matrix products, with their share of what the image tokens cost in a block (`12 N width² + 2 N² width`), and bytes
read and written by all else. One plan serves all sites of a block, and more blocks or steps where `plan` says so.
"""


@dataclass(frozen=True)
class Option:
    """An option of a method.

    Attributes:
        name: Its key in a recipe.
        default: As a recipe would write it.
        text: What it does.
    """

    name: str
    default: str
    text: str


@dataclass(frozen=True)
class Entry:
    """What the page says about a method.

    Attributes:
        name: What recipes call it.
        summary: One line.
        text: How it works.
        formula: What is computed.
        use: When to use it.
        options: Its options.
    """

    name: str
    summary: str
    text: str
    formula: str
    use: str
    options: tuple[Option, ...]


def describe_method(name: str, method: type[Method]) -> Entry:
    """Read what the docstring of a method says.

    Args:
        name: What recipes call it.
        method: The method.

    Raises:
        SdtmFxError: The docstring lacks a section, or says nothing about an option.
    """
    parsed = _PARSER.parse(inspect.getdoc(method) or "")
    told = {param.arg_name: _one_line(param.description) for param in parsed.params}
    options = []
    for field in dataclasses.fields(method):
        if field.name == "name":
            continue
        if field.name not in told:
            raise SdtmFxError(f"methods: the docstring of {name} does not say what option {field.name!r} is")
        options.append(Option(field.name, _written(field.default), told[field.name]))
    return Entry(
        name=name,
        summary=_one_line(parsed.short_description),
        text=parsed.long_description or "",
        formula=_section(parsed, name, "formula"),
        use=_section(parsed, name, "use"),
        options=tuple(options),
    )


def methods_page(methods: Mapping[str, type[Method]]) -> str:
    """Return the page in Markdown.

    Args:
        methods: By name; each must have defaults for all its options.

    Raises:
        SdtmFxError: As `describe_method`.
    """
    sections = [method_section(name, method) for name, method in methods.items()]
    return "\n".join([_HEAD.format(width=WIDTH), *sections])


def method_section(name: str, method: type[Method]) -> str:
    """Return what the page says about one method, in Markdown.

    Args:
        name: What recipes call it.
        method: The method; it must have defaults for all its options.

    Raises:
        SdtmFxError: As `describe_method`.
    """
    entry = describe_method(name, method)
    lines = [
        f"## `{name}`\n",
        f"{entry.summary}\n",
        *([entry.text + "\n"] if entry.text else []),
        f"- **Formula.** {entry.formula}",
        f"- **Cost.** {cost_text(method)}",
        f"- **Use.** {entry.use}",
        *(f"- `{option.name}: {option.default}`: {option.text}" for option in entry.options),
    ]
    return "\n".join(lines) + "\n"


def cost_text(method: type[Method]) -> str:
    """What a plan of a method costs with its defaults, at both sizes of `GRIDS`, in words."""
    if not method.merges:
        return "None, there is no plan."
    built: Method = TypeAdapter(method).validate_python({})
    text = "; ".join(_cost_at(built, grid) for grid in GRIDS)
    return text[0].upper() + text[1:] + "."


def _cost_at(method: Method, grid: TokenGrid) -> str:
    tokens = tokens_on(grid)
    remove = min(tokens // 2, method.capacity(grid)) // method.quantum() * method.quantum()
    effort = method_effort(method, grid, TEXT, WIDTH, remove)
    macs = effort.linear + effort.attention
    block = 12 * tokens * WIDTH**2 + 2 * tokens**2 * WIDTH
    moved = (effort.streamed + effort.gathered) / 1e6
    return f"at {tokens:,} tokens {macs / 1e9:.3g} G ({macs / block:.2%} of a block) and {moved:.3g} MB"


def _section(parsed: Docstring, name: str, section: str) -> str:
    texts: Iterable[str] = (_one_line(m.description) for m in parsed.meta if m.args[0] == section)
    text = next(iter(texts), "")
    if not text:
        raise SdtmFxError(f"methods: the docstring of {name} has no section {section.capitalize()!r}")
    return text


def _one_line(text: str | None) -> str:
    return " ".join((text or "").split())


def _written(default: object) -> str:
    """A default as YAML writes it."""
    if default is None:
        return "null"
    if isinstance(default, bool):
        return str(default).lower()
    return str(list(default)) if isinstance(default, tuple) else str(default)
