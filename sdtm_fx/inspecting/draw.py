"""``--draw``: the blocks of a model before and after a recipe, as SVG, as a page, or for graphviz."""

from __future__ import annotations

import html
from collections.abc import Iterator, Sequence
from pathlib import Path

from sdtm_fx.errors import InspectionError
from sdtm_fx.inspecting.picture import Box, Picture, picture_of
from sdtm_fx.inspecting.rewritten import rewritten_blocks
from sdtm_fx.inspecting.survey import Survey
from sdtm_fx.recipe.schema import Recipe

_COLOURS = {
    "merge": "#f4a261", "unmerge": "#e76f51", "forecast": "#95d5b2", "site": "#8ecae6", "module": "#e9ecef",
    "value": "#ffffff", "operation": "#f8f9fa",
}  # fmt: skip
_WIDTH, _HEIGHT, _GAP_X, _GAP_Y, _MARGIN = 190, 34, 16, 26, 20


def draw_blocks(survey: Survey, recipe: Recipe | None, path: Path) -> None:
    """Draw one block of each structure, and with a recipe, what such blocks become in the recipe's first stage.

    Blocks of one structure become different ones where a span begins, goes on and ends.

    Args:
        survey: The blocks.
        recipe: The recipe, or None.
        path: Where to write; its ending says what: ``.svg``, ``.html`` or ``.dot``.

    Raises:
        InspectionError: Another ending.
        SdtmFxError: What `rewrite` would say of the recipe and the model.
    """
    writers = {".dot": as_dot, ".svg": as_svg, ".html": as_page}
    if path.suffix not in writers:
        raise InspectionError(f"{path}: a drawing ends in {', '.join(writers)}")
    pictures = list(_before(survey)) if recipe is None else list(_both(survey, recipe))
    path.write_text(writers[path.suffix](pictures), encoding="utf-8")


def _before(survey: Survey) -> Iterator[Picture]:
    for structure in survey.structures:
        title = f"{structure.paths[0]} ({structure.kind}, {len(structure.paths)} alike)"
        yield picture_of(structure.graph, title, _sites_in(survey, structure.paths[0]))


def _both(survey: Survey, recipe: Recipe) -> Iterator[Picture]:
    """Blocks as they were captured, each in front of what the passes made of it, and of those like it."""
    rewritten = rewritten_blocks(survey, recipe)
    stage = recipe.stages[0].name
    for structure, before in zip(survey.structures, _before(survey), strict=True):
        mine = [blocks for blocks in rewritten if blocks.paths[0] in structure.paths]
        # The shapes of the same call as behind it, where there is one.
        yield (
            picture_of(mine[0].before, before.title, _sites_in(survey, mine[0].paths[0])) if mine else before
        )
        for blocks in mine:
            if blocks.after is not None:
                title = f"{blocks.paths[0]} in stage {stage} of {recipe.name} ({len(blocks.paths)} alike)"
                yield picture_of(blocks.after, title, _sites_in(survey, blocks.paths[0]))


def _sites_in(survey: Survey, block: str) -> set[str]:
    return {site.path.removeprefix(f"{block}.") for site in survey.sites if site.block == block}


def as_dot(pictures: Sequence[Picture]) -> str:
    """Pictures for graphviz: one cluster each."""
    lines = ["digraph blocks {", '  node [shape=box, style=filled, fontname="sans-serif", fontsize=10];']
    for number, picture in enumerate(pictures):
        lines.append(f"  subgraph cluster_{number} {{")
        lines.append(f"    label={_quoted(picture.title)};")
        for box in (box for layer in picture.boxes for box in layer):
            label = _quoted("\\n".join(filter(None, (box.label, box.shape))))
            lines.append(f'    "{number}_{box.name}" [label={label}, fillcolor="{_COLOURS[box.kind]}"];')
        for start, end in picture.arrows:
            lines.append(f'    "{number}_{start}" -> "{number}_{end}";')
        lines.append("  }")
    return "\n".join([*lines, "}", ""])


def as_svg(pictures: Sequence[Picture]) -> str:
    """Pictures side by side in one SVG, laid out here: graphviz is not needed."""
    parts, left, tallest = [], 0, 0
    for picture in pictures:
        drawn, width, height = _drawn(picture)
        parts.append(f'<g transform="translate({left},0)">{drawn}</g>')
        left, tallest = left + width, max(tallest, height)
    head = (
        f'<svg xmlns="http://www.w3.org/2000/svg" width="{left}" height="{tallest}" font-family="sans-serif">'
    )
    arrow = (
        '<defs><marker id="a" viewBox="0 0 8 8" refX="8" refY="4" markerWidth="6" markerHeight="6" orient="auto">'
        '<path d="M0,0L8,4L0,8z" fill="#868e96"/></marker></defs>'
    )
    return f"{head}{arrow}{''.join(parts)}</svg>\n"


def as_page(pictures: Sequence[Picture]) -> str:
    """The SVG in a page, with what the colours mean."""
    legend = "".join(
        f'<span style="background:{colour};border:1px solid #868e96;padding:2px 8px;margin-right:8px">{kind}</span>'
        for kind, colour in _COLOURS.items()
    )
    style = "body{font-family:sans-serif;margin:20px}div{overflow:auto}"
    return (
        f'<!doctype html><html lang="en"><head><meta charset="utf-8"><title>Blocks</title><style>{style}</style></head>'
        f"<body><p>{legend}</p><div>{as_svg(pictures)}</div></body></html>\n"
    )


def _drawn(picture: Picture) -> tuple[str, int, int]:
    """A picture as SVG, and its width and height."""
    widest = max(len(layer) for layer in picture.boxes)
    width = 2 * _MARGIN + widest * (_WIDTH + _GAP_X)
    height = 3 * _MARGIN + len(picture.boxes) * (_HEIGHT + _GAP_Y)
    place: dict[str, tuple[float, float]] = {}
    shapes = [f'<text x="{_MARGIN}" y="{_MARGIN}" font-size="13">{html.escape(picture.title)}</text>']
    for row, layer in enumerate(picture.boxes):
        for column, box in enumerate(layer):
            x = width / 2 + (column - len(layer) / 2) * (_WIDTH + _GAP_X) + _GAP_X / 2
            y = 2 * _MARGIN + row * (_HEIGHT + _GAP_Y)
            place[box.name] = (x + _WIDTH / 2, y)
            shapes.append(_rectangle(box, x, y))
    lines = []
    for start, end in picture.arrows:
        (x0, y0), (x1, y1) = place[start], place[end]
        top, half = y0 + _HEIGHT, _GAP_Y / 2
        curve = f"M{x0:.0f},{top:.0f}C{x0:.0f},{top + half:.0f} {x1:.0f},{y1 - half:.0f} {x1:.0f},{y1:.0f}"
        lines.append(f'<path d="{curve}" fill="none" stroke="#868e96" marker-end="url(#a)"/>')
    return "".join([*lines, *shapes]), width, height


def _rectangle(box: Box, x: float, y: float) -> str:
    middle = x + _WIDTH / 2
    at = f'x="{middle:.0f}" text-anchor="middle"'
    shape = f'<text {at} y="{y + 28:.0f}" font-size="9" fill="#495057">{box.shape}</text>'
    label = html.escape(box.label[:30])
    return (
        f'<g class="{box.kind}"><rect x="{x:.0f}" y="{y:.0f}" width="{_WIDTH}" height="{_HEIGHT}" rx="4" '
        f'fill="{_COLOURS[box.kind]}" stroke="#868e96"/>'
        f'<text {at} y="{y + 15:.0f}" font-size="11">{label}</text>'
        f"{shape}</g>"
    )


def _quoted(text: str) -> str:
    return '"' + text.replace('"', '\\"') + '"'
