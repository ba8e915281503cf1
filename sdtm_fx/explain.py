"""`explain`: what a rewriting merges, where, in which steps, and what that saves."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

import torch
from rich.console import Console, Group, RenderableType
from rich.table import Table
from rich.text import Text

from sdtm_fx.capture.blocks import capture_outer
from sdtm_fx.capture.example import ExampleSize, example_call
from sdtm_fx.cost.counter import MacCounter, Macs
from sdtm_fx.errors import RewriteError
from sdtm_fx.phase import Phase, Schedule
from sdtm_fx.rewriting.rewriting import Rewriting, rewriting_of
from sdtm_fx.runtime.call import Variant

_DEFAULT_STEPS, _DEFAULT_TEXT = 28, 77


@dataclass(frozen=True)
class SiteReport:
    """One site in one phase.

    Attributes:
        phase: Index of the phase.
        site: Id in the recipe.
        kind: ``attention`` or ``feed_forward``.
        path: Module path.
        tokens_before: Image tokens that reach the site.
        tokens_after: Image tokens that it computes.
        macs_before: Of the site's module, per call of the model.
        macs_after: The same with merging; None where it cannot be told apart from the rest of the block.
        skipped: Why the site is not merged in this phase, None where it is.
    """

    phase: int
    site: str
    kind: str
    path: str
    tokens_before: int
    tokens_after: int
    macs_before: Macs
    macs_after: Macs | None
    skipped: str | None


@dataclass(frozen=True)
class PhaseReport:
    """One phase: the steps that run it, and what a call of the model costs in it.

    Attributes:
        label: Name of the stage, or ``dense``.
        steps: The steps.
        removed: Image tokens removed at each merged site.
        ratio: The same as a fraction.
        macs: Of one call of the model.
        stores: Whether features are stored for later steps.
    """

    label: str
    steps: tuple[int, ...]
    removed: int
    ratio: float
    macs: Macs
    stores: bool


@dataclass(frozen=True)
class Explanation:
    """What a rewriting does at one size; print it, or take `as_dict`.

    Attributes:
        model: Class of the model.
        recipe: Name of the recipe.
        fingerprint: Of the recipe.
        steps: Denoising steps.
        grid: (height, width) in tokens.
        batch: Samples per call, CFG halves counted.
        text: Text tokens.
        structures: Number of rewritten block structures.
        blocks: Number of rewritten blocks.
        kept_dense: Blocks that the recipe keeps dense.
        dense: MACs of one call of the unchanged model.
        phases: The phases.
        sites: Every site in every phase.
        notes: What was not done, and why.
        state_bytes: Memory held across steps right now, in bytes, by purpose.
    """

    model: str
    recipe: str
    fingerprint: str
    steps: int
    grid: tuple[int, int]
    batch: int
    text: int
    structures: int
    blocks: int
    kept_dense: tuple[str, ...]
    dense: Macs
    phases: tuple[PhaseReport, ...]
    sites: tuple[SiteReport, ...]
    notes: tuple[str, ...]
    state_bytes: dict[str, int]

    @property
    def mean(self) -> Macs:
        """MACs of one call, averaged over the steps."""
        total = Macs()
        for phase in self.phases:
            total = total + phase.macs * len(phase.steps)
        return total * (1 / self.steps)

    @property
    def theoretical_speedup(self) -> float:
        """Total MACs of the dense model over those of the rewritten one, over all steps."""
        return self.dense.total / self.mean.total

    def as_dict(self) -> dict[str, Any]:
        """Everything as plain data."""
        return {**asdict(self), "mean": asdict(self.mean), "theoretical_speedup": self.theoretical_speedup}

    def __rich__(self) -> RenderableType:
        return _render(self)

    def __str__(self) -> str:
        console = Console(width=110, no_color=True)
        with console.capture() as capture:
            console.print(self)
        return capture.get()


def explain(
    target: Any,
    *,
    steps: int | None = None,
    grid: tuple[int, int] | None = None,
    batch: int | None = None,
    text: int | None = None,
    quiet: bool = False,
) -> Explanation:
    """Print, and return, what a rewritten model merges at a size; nothing is computed but shapes.

    Args:
        target: What was given to `rewrite`.
        steps: Denoising steps; by default those of the last generation, or 28.
        grid: (height, width) in image tokens (a 1024 px image of SD3 or FLUX has 64 x 64); by default that of the
            last call, or the model's ``sample_size``.
        batch: Samples per call, CFG halves counted; by default that of the last call, or 1.
        text: Text tokens; by default those of the last call, or 77.
        quiet: Do not print.

    Raises:
        RewriteError: Nothing is rewritten there, or the recipe has no `inputs` to make a call from.
        ScheduleError: The recipe cannot be scheduled at this size.
    """
    model = _model_of(target)
    rewriting = rewriting_of(model)
    assert rewriting is not None
    last = rewriting.runtime.last
    size = ExampleSize(
        batch=batch or (last.batch if last else 1),
        text=text or (last.text if last else _DEFAULT_TEXT),
        grid=grid or (last.grid if last else _native_grid(model)),
    )
    explanation = _explain(model, rewriting, steps or (last.steps if last else _DEFAULT_STEPS), size)
    if not quiet:
        Console().print(explanation)
    return explanation


def _model_of(target: Any) -> torch.nn.Module:
    components = getattr(target, "components", {})
    candidates = [target] if isinstance(target, torch.nn.Module) else list(components.values())
    for model in candidates:
        if isinstance(model, torch.nn.Module) and rewriting_of(model) is not None:
            return model
    raise RewriteError(f"{type(target).__name__} is not rewritten; call sdtm_fx.rewrite(it, recipe) first")


def _native_grid(model: torch.nn.Module) -> tuple[int, int]:
    config = getattr(model, "config", {})
    side = config.get("sample_size", 128) // config.get("patch_size", 1) if config.get("sample_size") else 64
    return side, side


def _explain(model: torch.nn.Module, rewriting: Rewriting, steps: int, size: ExampleSize) -> Explanation:
    recipe, cost = rewriting.recipe, rewriting.runtime.cost
    assert cost is not None
    schedule = rewriting.runtime.schedule(steps, size.grid, size.text)
    paths = [*rewriting.bindings, *rewriting.kept]
    places = {p.path: p for b in rewriting.bindings.values() for p in b.places}
    with MacCounter() as counter, counter.watching({path: model.get_submodule(path) for path in places}):
        capture_outer(model, paths, lambda: example_call(model, recipe, size))
    phases = []
    for index, phase in enumerate(schedule.phases):
        saved = Macs()
        if phase.stage is not None:
            saved = cost.saved(phase.stage, size.grid, size.text, phase.remove, size.batch)
        phases.append(_phase_report(recipe.stages, schedule, index, counter.macs - saved))
    notes = {note: None for program in rewriting.cache.programs.values() for note in program.notes}
    return Explanation(
        model=type(model).__name__,
        recipe=recipe.name,
        fingerprint=recipe.fingerprint(),
        steps=steps,
        grid=size.grid,
        batch=size.batch,
        text=size.text,
        structures=len(rewriting.cache.programs),
        blocks=len(rewriting.bindings),
        kept_dense=rewriting.kept,
        dense=counter.macs,
        phases=tuple(phases),
        sites=tuple(_site_reports(rewriting, schedule, size, counter.inside)),
        notes=tuple(notes),
        state_bytes=rewriting.runtime.state.bytes(),
    )


def _phase_report(stages: Any, schedule: Schedule, index: int, macs: Macs) -> PhaseReport:
    phase: Phase = schedule.phases[index]
    label = "dense" if phase.stage is None else stages[phase.stage].name
    return PhaseReport(
        label=label if phase.fresh_plan else f"{label}, plan kept",
        steps=tuple(t for t, p in enumerate(schedule.phase_of_step) if p == index),
        removed=phase.remove,
        ratio=phase.remove / schedule.tokens,
        macs=macs,
        stores=phase.refresh,
    )


def _site_reports(
    rewriting: Rewriting, schedule: Schedule, size: ExampleSize, dense: dict[str, Macs]
) -> list[SiteReport]:
    recipe, cost = rewriting.recipe, rewriting.runtime.cost
    assert cost is not None
    reports = []
    for index, phase in enumerate(schedule.phases):
        for block in cost.blocks:
            measured = None if phase.stage is None else cost.block_cost(block, phase.stage)
            for place in block.program.places:
                spec = recipe.sites[place.site_index]
                skipped = _why_skipped(rewriting, block.program.functions, phase, spec.id)
                removed = 0 if skipped else phase.remove
                after: Macs | None = dense[place.path]
                if removed and measured is not None:
                    saving = measured.sites.get(place.local)
                    saved = None if saving is None else saving.at(schedule.tokens, size.text, removed) * size.batch
                    after = None if saved is None else dense[place.path] - saved
                reports.append(
                    SiteReport(
                        index, spec.id, spec.kind, place.path,
                        schedule.tokens, schedule.tokens - removed, dense[place.path], after, skipped,
                    )
                )  # fmt: skip
    return reports


def _why_skipped(rewriting: Rewriting, functions: Any, phase: Phase, site: str) -> str | None:
    if phase.stage is None:
        return "the step is dense"
    stage = rewriting.recipe.stages[phase.stage]
    if site not in stage.sites:
        return f"not a site of stage {stage.name}"
    if Variant(stage=phase.stage) not in functions:
        return "its block has no graph for this stage"
    return None


def _render(e: Explanation) -> RenderableType:
    height, width = e.grid
    head = Text(
        f"{e.model}, recipe {e.recipe}: {e.blocks} blocks in {e.structures} structures rewritten"
        + (f", {len(e.kept_dense)} kept dense" if e.kept_dense else "")
        + f"\n{e.steps} steps, {height} x {width} = {height * width} image tokens, {e.text} text tokens, "
        f"batch {e.batch}"
    )
    phases = Table("phase", "steps", "ratio", "tokens", "linear", "total", "speedup", title="Phases (GMACs per call)")
    for index, p in enumerate(e.phases):
        tokens = height * width
        phases.add_row(
            f"{index} {p.label}" + (" *" if p.stores else ""), _ranges(p.steps), f"{p.ratio:.3f}",
            f"{tokens - p.removed}", f"{p.macs.linear / 1e9:.4g}", f"{p.macs.total / 1e9:.4g}",
            f"{e.dense.total / p.macs.total:.2f}x",
        )  # fmt: skip
    phases.add_row(
        "mean", f"{e.steps}", "", "", f"{e.mean.linear / 1e9:.4g}", f"{e.mean.total / 1e9:.4g}",
        f"{e.theoretical_speedup:.2f}x",
    )  # fmt: skip
    parts: list[RenderableType] = [head, phases, _site_table(e)]
    if any(p.stores for p in e.phases):
        parts.append(Text("* stores features for later steps"))
    if any(e.state_bytes.values()):
        held = ", ".join(f"{name} {size / 2**20:.1f} MiB" for name, size in e.state_bytes.items())
        parts.append(Text(f"held across steps: {held}"))
    parts += [Text(line) for line in (*_left_alone(e), *(f"note: {note}" for note in e.notes))]
    return Group(*parts)


def _site_table(e: Explanation) -> Table:
    """Merged sites only; sites that a phase leaves alone are named, with the reason, in `_left_alone`."""
    table = Table("phase", "modules", "tokens", "GMACs each", title="Merged sites")
    for (phase, _), sites in _by_phase_and_site(e).items():
        first = sites[0]
        if e.phases[phase].removed == 0 or first.skipped is not None:
            continue
        after = "" if first.macs_after is None else f" -> {first.macs_after.total / 1e9:.4g}"
        table.add_row(
            str(phase), _paths([s.path for s in sites]), f"{first.tokens_before} -> {first.tokens_after}",
            f"{first.macs_before.total / 1e9:.4g}{after}",
        )  # fmt: skip
    return table


def _left_alone(e: Explanation) -> list[str]:
    lines = {}
    for (phase, name), sites in _by_phase_and_site(e).items():
        if e.phases[phase].removed and sites[0].skipped is not None:
            lines[f"{name}: {_paths([s.path for s in sites])} not merged: {sites[0].skipped}"] = None
    return list(lines)


def _by_phase_and_site(e: Explanation) -> dict[tuple[int, str], list[SiteReport]]:
    groups: dict[tuple[int, str], list[SiteReport]] = {}
    for site in e.sites:
        groups.setdefault((site.phase, site.site), []).append(site)
    return groups


def _ranges(steps: tuple[int, ...]) -> str:
    """``0-2, 5`` for (0, 1, 2, 5)."""
    runs: list[list[int]] = []
    for step in steps:
        if runs and runs[-1][1] == step - 1:
            runs[-1][1] = step
        else:
            runs.append([step, step])
    return ", ".join(str(a) if a == b else f"{a}-{b}" for a, b in runs)


def _paths(paths: list[str]) -> str:
    """``blocks.*.attn (24)`` for the paths of one site."""
    if len(paths) == 1:
        return paths[0]
    first, last = paths[0].split("."), paths[-1].split(".")
    pattern = ".".join(a if a == b else "*" for a, b in zip(first, last, strict=True))
    return f"{pattern} ({len(paths)})"
