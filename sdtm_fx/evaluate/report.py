"""An evaluation as tables and as data."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import asdict
from typing import Any

from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from sdtm_fx.evaluate.identity import environment
from sdtm_fx.evaluate.interval import Estimate
from sdtm_fx.evaluate.result import Evaluation, RowResult
from sdtm_fx.evaluate.variant import variant

FORMAT = 1
"""Version of the data that `as_dict` returns."""


def render(evaluation: Evaluation) -> RenderableType:
    """Tables of cost and fidelity, of differences, and of what the judge says; intervals are 95 %."""
    parts: list[RenderableType] = [_fidelity(evaluation)]
    rewritten = [result for result in evaluation.rows if variant(result.row) is not None]
    if len(rewritten) > 1:
        parts.append(_differences(evaluation, rewritten))
    if evaluation.attributes:
        parts.append(_judged(evaluation))
    if evaluation.frechet_missing is not None:
        parts.append(Text(f"Fréchet distances not computed: {evaluation.frechet_missing}"))
    s = evaluation.sampling
    guidance = "the default" if s.guidance_scale is None else f"{s.guidance_scale:g}"
    parts.append(Text(f"{s.steps} steps, {s.height} x {s.width} px, guidance {guidance}"))
    parts.append(Text("linear and total: shares of the dense MACs; intervals hold 95 %, over seeds"))
    return Group(*parts)


def _fidelity(evaluation: Evaluation) -> Table:
    title = f"Cost, and distance to the dense image of the same seed ({evaluation.sampling.paired} images)"
    table = Table("row", "linear", "total", "speedup", "PSNR, dB", "SSIM", "end error", title=title)
    for result in evaluation.rows:
        label = result.row.label
        table.add_row(
            label, f"{result.linear:.2f}", f"{result.total:.2f}", f"{1 / result.total:.2f}x",
            as_text(evaluation.estimate(label, "psnr"), 1), as_text(evaluation.estimate(label, "ssim"), 3),
            as_text(evaluation.estimate(label, "error"), 3),
        )  # fmt: skip
    return table


def _differences(evaluation: Evaluation, rewritten: list[RowResult]) -> Table:
    first = rewritten[0].row.label
    table = Table("row", "PSNR, dB", "SSIM", title=f"Differences to {first}, image by image")
    for result in rewritten[1:]:
        label = result.row.label
        table.add_row(
            label,
            as_text(evaluation.difference(label, first, "psnr"), 2, signed=True),
            as_text(evaluation.difference(label, first, "ssim"), 4, signed=True),
        )
    return table


def _judged(evaluation: Evaluation) -> Table:
    title = f"The judge ({evaluation.sampling.judged} images)"
    floor = "" if evaluation.frechet_floor is None else f" (floor {evaluation.frechet_floor:.3g})"
    table = Table("row", *evaluation.graded, f"FD to real{floor}", "FD to dense", title=title)
    for result in evaluation.rows:
        if not result.right:
            continue
        shares = [evaluation.accuracy(result.row.label, name) for name in evaluation.graded]
        distances = (result.frechet_real, result.frechet_dense)
        table.add_row(
            result.row.label,
            *(as_text(share, 3) for share in shares),
            *("" if distance is None else as_text(distance, 2) for distance in distances),
        )
    return table


def as_text(estimate: Estimate, digits: int, *, signed: bool = False) -> str:
    """``27.3 [26.1, 28.4]``; identical images are named, not averaged.

    Args:
        estimate: What to show.
        digits: Behind the point.
        signed: Write the sign of positive values too, which a difference has.
    """
    sign = "+" if signed else ""
    if math.isinf(estimate.mean):
        return "identical" if not signed else f"{estimate.mean:+}"
    text = f"{estimate.mean:{sign}.{digits}f}"
    if estimate.low is not None and estimate.high is not None:
        text += f" [{estimate.low:{sign}.{digits}f}, {estimate.high:{sign}.{digits}f}]"
    if estimate.infinite:
        text += f", without {estimate.infinite} of {estimate.count} identical"
    return text


def as_dict(evaluation: Evaluation, settings: Mapping[str, Any] | None = None) -> dict[str, Any]:
    """Everything but the images, as plain data that is valid JSON: infinite values are the text "inf".

    Equal runs give equal data, except under ``times``.

    Args:
        evaluation: What was found.
        settings: More to keep beside those of the evaluation, such as the name of the model.
    """
    dense = evaluation.dense_macs
    data = {
        "format": FORMAT,
        "settings": {**(settings or {}), **asdict(evaluation.sampling)},
        "identity": {**evaluation.identity, "judge": evaluation.judge_digest},
        "environment": environment(),
        "dense_macs": None if dense is None else asdict(dense),
        "attributes": evaluation.attributes,
        "frechet_floor": evaluation.frechet_floor,
        "frechet_missing": evaluation.frechet_missing,
        "rows": [_row(evaluation, result) for result in evaluation.rows],
        "times": {result.row.label: result.seconds for result in evaluation.rows},
    }
    plain: dict[str, Any] = _without_infinity(data)
    return plain


def to_json(data: Mapping[str, Any]) -> str:
    """The data of `as_dict` as JSON text."""
    return json.dumps(data, indent=1, allow_nan=False, ensure_ascii=False) + "\n"


def _row(evaluation: Evaluation, result: RowResult) -> dict[str, Any]:
    row, label = result.row, result.row.label
    return {
        "label": label,
        "method": row.method,
        "budget": row.budget,
        "recipe": None if row.recipe is None else row.recipe.to_data(),
        "variant": variant(row),
        "macs": {"linear": result.linear, "total": result.total, "speedup": 1 / result.total},
        "psnr": {**asdict(evaluation.estimate(label, "psnr")), "values": result.psnr},
        "ssim": {**asdict(evaluation.estimate(label, "ssim")), "values": result.ssim},
        "error_growth": {
            "steps": [asdict(result.growth_at(step)) for step in range(evaluation.sampling.steps)],
            "values": result.growth,
        },
        "accuracy": {
            name: asdict(evaluation.accuracy(label, name)) for name in evaluation.graded if result.right
        },
        "right": result.right,
        "frechet_real": None if result.frechet_real is None else asdict(result.frechet_real),
        "frechet_dense": None if result.frechet_dense is None else asdict(result.frechet_dense),
    }


def _without_infinity(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _without_infinity(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_without_infinity(item) for item in value]
    return str(value) if isinstance(value, float) and math.isinf(value) else value
