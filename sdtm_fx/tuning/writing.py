"""The recipe that a search writes: short, over the one it started from, and how it was found."""

from __future__ import annotations

import math
import textwrap
from collections.abc import Sequence
from typing import Any

from sdtm_fx.evaluate.identity import environment
from sdtm_fx.evaluate.interval import Estimate
from sdtm_fx.recipe.dump import dump_yaml
from sdtm_fx.recipe.schema import Recipe
from sdtm_fx.tuning.setting import changes
from sdtm_fx.tuning.tune import Finalist, Tuned

UNITS = {"psnr": "dB", "ssim": "SSIM"}
"""How qualities are told."""


def recipe_text(found: Tuned, base: Recipe, extends: str, command: str, *, loose: bool = False) -> str:
    """The tuned recipe as YAML, with comments that say how it was found and what it is ahead of.

    Args:
        found: The search.
        base: The recipe that settings were said in.
        extends: What the recipe extends: a shipped name, or a path.
        command: What was run.
        loose: Whether the model has other numbers of blocks than the recipe expects.
    """
    goal, best = found.goal, found.tuned
    unit = UNITS[goal.quality]
    lines = [
        f"Written by `{command}`, commit {environment()['commit']}, after {len(found.trials)} trials.",
        f"On {goal.held_out} held-out images of {goal.width} x {goal.height} px, {goal.steps} steps, to the dense "
        f"image of the same seed: {told(best.estimate)} {unit} at {best.speedup:.2f}x by total MACs.",
    ]
    lines += [
        f"{rival.label}: {told(rival.estimate)} {unit} at {rival.speedup:.2f}x; image by image the tuned one is "
        f"ahead by {told(best.ahead_of(rival))} {unit}."
        for rival in found.rivals
    ]
    comment = "\n".join(
        textwrap.fill(
            line,
            110,
            initial_indent="# ",
            subsequent_indent="#   ",
            break_on_hyphens=False,
            break_long_words=False,
        )
        for line in lines
    )
    data: dict[str, Any] = {
        "version": 1,
        "name": goal.name,
        "description": f"Tuned for {goal.steps} steps at {goal.speedup:g}x, after {base.name}.",
        "extends": extends,
        **({"sites": {"*": {"expect": None}}} if loose else {}),
        **changes(found.setting, base),
    }
    return f"{comment}\n{dump_yaml(data)}"


def told(estimate: Estimate) -> str:
    """A mean with its interval."""
    if estimate.low is None or estimate.high is None:
        return f"{estimate.mean:.2f}"
    return f"{estimate.mean:.2f} [{estimate.low:.2f}, {estimate.high:.2f}]"


def _finite(values: Sequence[float]) -> list[float | None]:
    """JSON knows no infinity: the PSNR of identical images becomes null."""
    return [value if math.isfinite(value) else None for value in values]


def as_data(found: Tuned, *, model: str, command: str, written: str) -> dict[str, Any]:
    """All of a search as plain data, for JSON.

    Args:
        found: The search.
        model: What it was about.
        command: What was run.
        written: The recipe that was written, as YAML.
    """

    def finalist(one: Finalist) -> dict[str, Any]:
        return {
            "label": one.label,
            "family": one.family,
            "speedup": one.speedup,
            "held_out": _finite(one.held_out),
            "recipe": one.recipe.to_data(),
        }

    goal = {
        name: str(value) if name == "prompts" and value else value for name, value in vars(found.goal).items()
    }
    return {
        "goal": goal,
        "environment": environment(),
        "model": model,
        "command": command,
        "written": written,
        "chosen_after": found.chosen_after,
        "seconds": found.seconds,
        "tried": len(found.trials),
        "tuned": finalist(found.tuned),
        "rivals": [finalist(rival) for rival in found.rivals],
        "left_out": [*found.left_out],
        "sensitivities": [
            {"part": one.part.label, "gain": one.gain, "share": one.share, "rate": one.rate}
            for one in found.sensitivities
        ],
        "trials": [
            {
                "family": trial.family,
                "speedup": trial.speedup,
                "quality": _finite(trial.quality),
                "setting": {**vars(trial.setting)},
            }
            for trial in found.trials
        ],
    }
