"""What an analysis says: a table and sentences for a terminal, and data files."""

from __future__ import annotations

import csv
import json
from pathlib import Path
from typing import Any

import numpy as np
import yaml
from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from sdtm_fx.analyze.result import KINDS, Analysis
from sdtm_fx.analyze.suggest import Split, Suggestion

_ROWS = 8
_TITLES = {"output": "what blocks return", "update": "what blocks add"}


def render(analysis: Analysis, suggestion: Suggestion) -> RenderableType:
    """Both summary tables and the suggestion."""
    tables = [_table(analysis, kind) for kind in KINDS]
    return Group(*tables, Text("\n".join(sentences(analysis, suggestion))))


def sentences(analysis: Analysis, suggestion: Suggestion) -> list[str]:
    """The suggestion in words, one line each."""
    lines = ["Suggestion, a heuristic on features; judge it by images:"]
    lines.append(
        f"  low frequencies stop dominating: {_split(suggestion.by_detail, suggestion, 'detail share')}"
    )
    lines.append(f"  redundancy falls: {_split(suggestion.by_redundancy, suggestion, 'similarity')}")
    if suggestion.until is None:
        lines.append(
            "  no stage boundary: the features do not go from structure to detail; keep the recipe's"
        )
        where = "first half", "second half"
    else:
        lines.append(f"  end of the structure stage: until {suggestion.until:.2f} of the steps")
        where = "structure", "detail"
    if suggestion.left_out:
        others = sorted({"none" if x is None else f"{x:.2f}" for x in suggestion.left_out})
        lines.append(f"  the same without one of the images: {', '.join(others)}")
    lines.append(
        f"  ratios for a mean of {np.mean(suggestion.ratios):.2f}: {where[0]} {suggestion.structure_ratio:.2f}, "
        f"{where[1]} {suggestion.detail_ratio:.2f}; steps from {min(suggestion.ratios):.2f} to "
        f"{max(suggestion.ratios):.2f}"
    )
    for cost in suggestion.windows:
        lines.append(
            f"  partners inside {cost.edge} x {cost.edge} windows are {cost.before:.2f}x as dissimilar as the "
            f"best anywhere in the {where[0]} steps, {cost.after:.2f}x in the {where[1]} steps"
        )
    return lines


def _split(found: Split | None, suggestion: Suggestion, name: str) -> str:
    if found is None:
        return f"nowhere, the {name} moves the other way"
    text = (
        f"at step {found.step} of {suggestion.steps} ({found.step / suggestion.steps:.2f}), {name} "
        f"{found.before:.3f} to {found.after:.3f}, {found.explained:.0%} explained"
    )
    return text if found.counts else f"{text}: too little to count"


def _table(analysis: Analysis, kind: str) -> Table:
    title = (
        f"{analysis.model}, {_TITLES[kind]}: {len(analysis.blocks)} blocks, {analysis.images} images, "
        f"{analysis.grid[0]} x {analysis.grid[1]} tokens; mean ± deviation over blocks"
    )
    columns = ["detail_share", "similarity", "distance"]
    columns += [f"similarity_in_{edge}x{edge}" for edge in analysis.settings.windows]
    heads = ["detail share", "best cosine", "distance", *(f"in {e} x {e}" for e in analysis.settings.windows)]
    table = Table("step", *heads, title=title, caption=_caption(analysis))
    scalars = analysis.scalars(kind)
    for step in sorted({round(i) for i in np.linspace(0, analysis.steps - 1, min(_ROWS, analysis.steps))}):
        cells = []
        for name in columns:
            by_block = scalars[name][:, step].mean(axis=0)
            digits = 1 if name == "distance" else 3
            spread = f"{by_block.std():.{digits}f}".removeprefix("0" if digits == 3 else "")
            cells.append(f"{by_block.mean():.{digits}f} ± {spread}")
        table.add_row(str(step), *cells)
    return table


def _caption(analysis: Analysis) -> str:
    return f"distance in tokens; two tokens at random are {analysis.random_distance:.1f} apart"


def as_dict(analysis: Analysis, suggestion: Suggestion) -> dict[str, Any]:
    """Description, suggestion, and means over images and blocks for every step, as plain data."""
    curves = {
        kind: {name: values.mean(axis=(0, 2)).tolist() for name, values in analysis.scalars(kind).items()}
        for kind in KINDS
    }
    return {
        "model": analysis.model,
        "recipe": analysis.recipe,
        "blocks": list(analysis.blocks),
        "grid": list(analysis.grid),
        "images": analysis.images,
        "steps": analysis.steps,
        "wavelet": analysis.settings.wavelet,
        "random_distance": analysis.random_distance,
        "suggestion": suggestion.as_dict(),
        "curves": curves,
    }


def save_data(
    analysis: Analysis,
    suggestion: Suggestion,
    folder: Path,
    record: dict[str, Any],
    recipe: str | None = None,
) -> list[Path]:
    """Write `analysis.json`, `blocks.csv` (means over images), `analysis.npz` (everything) and `suggested.yaml`.

    The last one is a recipe, and is left out where `Suggestion.as_recipe` has none.

    Args:
        analysis: The analysis.
        suggestion: Its suggestion.
        folder: Exists.
        record: Further entries for the JSON file: how the images were made.
        recipe: What `suggested.yaml` extends, a shipped name or a file; by default the recipe of the analysis.

    Returns:
        The files.
    """
    files = [folder / name for name in ("analysis.json", "blocks.csv", "analysis.npz")]
    data = {**record, **as_dict(analysis, suggestion)}
    files[0].write_text(json.dumps(data, indent=1) + "\n", encoding="utf-8")
    scalars = {kind: analysis.scalars(kind) for kind in KINDS}
    with files[1].open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow(["features", "step", "block", *scalars[KINDS[0]]])
        for kind in KINDS:
            means = [values.mean(axis=0) for values in scalars[kind].values()]
            for step in range(analysis.steps):
                for place, block in enumerate(analysis.blocks):
                    writer.writerow([kind, step, block, *(f"{m[step, place]:.6g}" for m in means)])
    arrays: dict[str, Any] = {f"{kind}_{name}": v for kind in KINDS for name, v in scalars[kind].items()}
    for kind, features in analysis.kinds().items():
        arrays[f"{kind}_window_quantiles"] = features.quantiles
        if features.maps is not None:
            arrays[f"{kind}_map_similarity"], arrays[f"{kind}_map_distance"] = features.maps
    arrays = {name: values.astype(np.float32) for name, values in arrays.items()}
    np.savez_compressed(files[2], blocks=np.array(analysis.blocks), **arrays)
    suggested = suggestion.as_recipe(recipe or analysis.recipe, folder)
    if suggested is not None:
        files.append(folder / "suggested.yaml")
        files[3].write_text(yaml.safe_dump(suggested, sort_keys=False), encoding="utf-8")
    return files
