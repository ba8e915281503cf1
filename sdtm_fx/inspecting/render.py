"""A survey as tables, and as data."""

from __future__ import annotations

from typing import Any

from rich.console import Group, RenderableType
from rich.table import Column, Table
from rich.text import Text

from sdtm_fx.inspecting.groups import SiteGroup, group_left_out, group_sites
from sdtm_fx.inspecting.lengths import Length
from sdtm_fx.inspecting.marks import Marks
from sdtm_fx.inspecting.survey import FoundSite, Survey

_WHERE = {
    "image": "",
    "text first": ", text first",
    "image first": ", image first",
    "unknown": ", order unknown",
}


def render(survey: Survey, marks: Marks | None = None) -> RenderableType:
    """The survey as something that rich prints.

    Args:
        survey: The survey.
        marks: What a recipe would do.
    """
    parts: list[RenderableType] = [_head(survey), _call(survey), _blocks(survey), _sites(survey, marks)]
    for (name, kind, why), paths in group_left_out(survey.left_out).items():
        parts.append(Text(f"no site: {name} ({len(paths)}, {kind}): {why}"))
    if isinstance(survey.outer, str):
        parts.append(Text(f"cannot be rewritten yet: {survey.outer}", "yellow"))
    if marks is not None:
        parts.append(Text(marks.says()))
    return Group(*parts)


def _head(survey: Survey) -> Text:
    patch = "" if survey.patch is None else f", a token is {survey.patch} x {survey.patch} of the latent"
    size = survey.size
    return Text(
        f"{survey.subject.name} ({survey.subject.source}): {sum(len(s.paths) for s in survey.structures)} blocks in "
        f"{len(survey.structures)} structures, {len(survey.sites)} sites{patch}\n"
        f"{survey.total.total / 1e9:.4g} GMACs ({survey.total.linear / 1e9:.4g} in linear layers) for N = "
        f"{int(survey.finest * size.area)} image tokens, T = {size.text} text tokens, batch {size.batch}"
    )


def _call(survey: Survey) -> Text:
    listed = ", ".join(f"{name}={argument.says()}" for name, argument in survey.call.arguments.items())
    return Text(f"call: {listed}")


def _blocks(survey: Survey) -> Table:
    table = Table(
        Column("blocks", overflow="fold"), "class", "nodes", "sites in each", title="Block structures"
    )
    for structure in survey.structures:
        locals_ = [s.path.removeprefix(f"{s.block}.") for s in survey.sites if s.block == structure.paths[0]]
        table.add_row(
            shorten(structure.paths), structure.kind, str(structure.nodes), ", ".join(locals_) or "none"
        )
    return table


def _sites(survey: Survey, marks: Marks | None) -> Table:
    columns: list[Column | str] = [
        Column("modules", overflow="fold"),
        "computes",
        "tokens",
        "positions",
        "GMACs",
    ]
    table = Table(*columns, *(["recipe"] if marks is not None else []), title="Sites")
    for group in group_sites(survey):
        site = group.first
        keys = "" if site.keys is None or site.keys == site.tokens else f" on {_length(site.keys, survey)}"
        row = [
            f"{group.pattern} ({len(group.sites)})", _kind(site), f"{_tokens(site, survey)}{keys}", _positions(site),
            f"{group.macs.total / 1e9:.4g} ({group.macs.total / survey.total.total:.1%})",
        ]  # fmt: skip
        table.add_row(*row, *([marks.of(group)] if marks is not None else []))
    return table


def _kind(site: FoundSite) -> str:
    beside = ", ".join(path.rpartition(".")[2] for path in site.parallel)
    joined = f", joined with {beside}" if beside else ""
    return f"{site.kind}{joined}{f', call {site.call}' if site.call is not None else ''}"


def _tokens(site: FoundSite, survey: Survey) -> str:
    return f"{_length(site.tokens, survey)}{_WHERE[site.order]}"


def _positions(site: FoundSite) -> str:
    rotary = [f"rotary {site.rotary.argument}"] if site.rotary is not None else []
    return ", ".join((*rotary, *site.positions)) or "none"


def _length(length: Length, survey: Survey) -> str:
    return length.says(survey.finest)


def shorten(paths: tuple[str, ...]) -> str:
    """``blocks.0 ... blocks.23 (24)`` for many paths."""
    return paths[0] if len(paths) == 1 else f"{paths[0]} ... {paths[-1]} ({len(paths)})"


def as_data(survey: Survey, marks: Marks | None = None) -> dict[str, Any]:
    """The survey as plain data."""
    return {
        "model": survey.subject.name,
        "source": survey.subject.source,
        "call": {name: argument.says() for name, argument in survey.call.arguments.items()},
        "patch": survey.patch,
        "size": {
            "batch": survey.size.batch, "text": survey.size.text, "tokens": int(survey.finest * survey.size.area),
        },
        "macs": {"linear": survey.total.linear, "total": survey.total.total},
        "outer": survey.outer,
        "structures": [
            {"blocks": list(s.paths), "class": s.kind, "nodes": s.nodes} for s in survey.structures
        ],
        "sites": [_site_data(group, survey, marks) for group in group_sites(survey)],
        "left_out": [{"path": m.path, "kind": m.kind, "why": m.why} for m in survey.left_out],
        **({"recipe": marks.as_data()} if marks is not None else {}),
    }  # fmt: skip


def _site_data(group: SiteGroup, survey: Survey, marks: Marks | None) -> dict[str, Any]:
    site = group.first
    return {
        "match": group.pattern,
        "paths": [s.path for s in group.sites],
        "kind": site.kind,
        "tokens": _length(site.tokens, survey),
        "keys": None if site.keys is None else _length(site.keys, survey),
        "order": site.order,
        "input": site.input,
        "output": site.output,
        "call": site.call,
        "beside": site.beside,
        "rotary": None if site.rotary is None else site.rotary.argument,
        "positions": list(site.positions),
        "parallel": list(site.parallel),
        "downsample": group.level,
        "macs": {"linear": group.macs.linear, "total": group.macs.total},
        **({"recipe": marks.of(group)} if marks is not None else {}),
    }
