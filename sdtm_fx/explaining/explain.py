"""`explain`: builds the report at one size, from shapes alone."""

from __future__ import annotations

from typing import Any

import torch
from rich.console import Console

from sdtm_fx.capture.blocks import capture_outer
from sdtm_fx.capture.example import ExampleSize, example_call, takes_text
from sdtm_fx.cost.counter import MacCounter, Macs
from sdtm_fx.cost.decision import GateDecision
from sdtm_fx.cost.saving import Saving
from sdtm_fx.explaining.memory import feature_bytes
from sdtm_fx.explaining.render import render
from sdtm_fx.explaining.report import Explanation, GatedSite, GateReport, PhaseReport, SiteReport
from sdtm_fx.explaining.spans import removed_further, short_span, span_reports
from sdtm_fx.grids import TokenGrid, tokens_on
from sdtm_fx.idle_stages import idle_stages
from sdtm_fx.phase import Phase, Schedule
from sdtm_fx.recipe.schema import Recipe
from sdtm_fx.recipe.tokens import LatentGrid, ShapesGrid
from sdtm_fx.rewrite import rewritten_models
from sdtm_fx.rewriting.programs import Program
from sdtm_fx.rewriting.rewriting import Rewriting, rewriting_of
from sdtm_fx.rewriting.spans import forecast_span
from sdtm_fx.runtime.call import Variant
from sdtm_fx.runtime.schedules import CallSize

_DEFAULT_STEPS, _DEFAULT_TEXT = 28, 77
_COMMON_VIDEO = (21, 30, 52)
"""81 frames of 480 x 832 px, where a token is 4 frames of 16 x 16 px."""


def explain(
    target: Any,
    *,
    steps: int | None = None,
    grid: TokenGrid | None = None,
    batch: int | None = None,
    text: int | None = None,
    references: int | None = None,
    quiet: bool = False,
) -> Explanation:
    """Print, and return, what a rewritten model merges at a size; nothing is computed but shapes.

    Args:
        target: What was given to `rewrite`.
        steps: Denoising steps; by default those of the last generation, or 28.
        grid: (height, width) in image tokens (a 1024 px image of SD3 or FLUX has 64 x 64), or (frames, height, width)
            where the recipe is for videos, protected frames counted; by default that of the last call, or the model's
            ``sample_size``, or a common one.
        batch: Samples per call, CFG halves counted; by default that of the last call, or 1.
        text: Text tokens; by default those of the last call, or 77. None where calls have no text of any length.
        references: Tokens of reference images; by default those of the last call, or none.
        quiet: Do not print.

    Raises:
        RewriteError: Nothing is rewritten there, or the recipe has no `inputs` to make a call from.
        PlanError: The grid is of another kind than the recipe's.
        ScheduleError: The recipe cannot be scheduled at this size.
    """
    model = rewritten_models(target)[0]
    rewriting = rewriting_of(model)
    assert rewriting is not None
    last = rewriting.runtime.last
    given = grid or _native_grid(model, rewriting.recipe)
    size = ExampleSize(
        batch=batch or (last.batch if last else 1),
        text=(text or (last.text if last else _DEFAULT_TEXT)) if takes_text(rewriting.recipe) else 0,
        grid=last.grid if last and grid is None else rewriting.recipe.tokens.mergeable(given),
        references=references if references is not None else last.references if last else 0,
    )
    explanation = _explain(model, rewriting, steps or (last.steps if last else _DEFAULT_STEPS), size)
    if not quiet:
        Console().print(render(explanation))
    return explanation


def _native_grid(model: torch.nn.Module, recipe: Recipe) -> TokenGrid:
    layout, config = recipe.tokens.grid, getattr(model, "config", {})
    if recipe.tokens.has_frames:
        return (1, 64, 64) if isinstance(layout, ShapesGrid) else _COMMON_VIDEO
    latent = config.get("sample_size")
    if not latent:
        return 64, 64
    patch = layout.patches if isinstance(layout, LatentGrid) else config.get("patch_size", 1)
    height, width = (patch, patch) if isinstance(patch, int) else patch[-2:]
    return latent // height, latent // width


def _explain(model: torch.nn.Module, rewriting: Rewriting, steps: int, size: ExampleSize) -> Explanation:
    recipe, cost = rewriting.recipe, rewriting.schedules.cost
    schedule = rewriting.runtime.schedule(steps, size.grid, size.text, size.batch, size.references)
    called = CallSize(steps, size.grid, size.batch, size.text, size.references)
    decision = rewriting.runtime.gate(called)
    paths = [*rewriting.bindings, *rewriting.kept]
    places = {p.path: p for b in rewriting.bindings.values() for p in b.places}
    with MacCounter() as counter, counter.watching({path: model.get_submodule(path) for path in places}):
        capture_outer(model, paths, lambda: example_call(model, recipe, size))
    phases = []
    for index, phase in enumerate(schedule.phases):
        saved = Macs()
        if phase.stage is not None:
            left_out = _left_out(decision, phase)
            saved = cost.saved(
                phase.stage, size.grid, size.text, phase.remove, size.batch, left_out,
                fresh_plan=phase.fresh_plan, fresh_destinations=phase.fresh_destinations,
                references=size.references,
            )  # fmt: skip
        phases.append(_phase_report(recipe.stages, schedule, index, counter.macs - saved))
    stages = {p.stage: _left_out(decision, p) for p in schedule.phases if p.stage is not None}
    notes = dict.fromkeys(idle_stages(recipe, rewriting.schedules.asked(called)))
    notes.update((note, None) for program in rewriting.cache.programs.values() for note in program.notes)
    return Explanation(
        model=type(model).__name__,
        recipe=recipe.name,
        fingerprint=recipe.fingerprint(),
        steps=steps,
        grid=size.grid,
        batch=size.batch,
        text=size.text,
        modules=tuple(str(n.target) for n in rewriting.outer.nodes if n.op == "call_module"),
        structures=len(rewriting.cache.programs),
        blocks=len(rewriting.bindings),
        kept_dense=rewriting.kept,
        dense=counter.macs,
        phases=tuple(phases),
        sites=tuple(_site_reports(rewriting, schedule, decision, size, counter.inside)),
        spans=tuple(span_reports(rewriting, schedule, decision, size.grid)),
        gate=_gate_report(rewriting, decision),
        notes=tuple(notes),
        state_bytes=rewriting.runtime.state.bytes(),
        feature_bytes=feature_bytes(cost, stages, size.grid, size.references) * size.batch,
        protected=recipe.tokens.protected(size.grid),
        references=size.references,
    )


def _phase_report(stages: Any, schedule: Schedule, index: int, macs: Macs) -> PhaseReport:
    phase: Phase = schedule.phases[index]
    label = "dense" if phase.stage is None else stages[phase.stage].name
    label += "" if phase.fresh_plan else ", plan kept"
    label += "" if phase.fresh_destinations else ", destinations kept"
    return PhaseReport(
        label=label,
        steps=tuple(t for t, p in enumerate(schedule.phase_of_step) if p == index),
        removed=phase.remove,
        ratio=phase.remove / schedule.tokens,
        macs=macs,
        stores=phase.refresh,
    )


def _site_reports(
    rewriting: Rewriting,
    schedule: Schedule,
    decision: GateDecision | None,
    size: ExampleSize,
    dense: dict[str, Macs],
) -> list[SiteReport]:
    recipe, cost = rewriting.recipe, rewriting.schedules.cost
    reports = []
    for index, phase in enumerate(schedule.phases):
        for block in cost.blocks:
            own_grid = cost.layers.grid(block.index, size.grid)
            own, tokens, beside = phase.remove, tokens_on(own_grid), cost.beside(own_grid, size.references)
            if phase.stage is not None:
                method = recipe.stages[phase.stage].method
                own = cost.layers.remove(block.index, own, method, size.grid)
            out = _left_out(decision, phase).get(block.path, frozenset())
            measured = None if phase.stage is None else cost.block_cost(block, phase.stage, out)
            for place in block.program.places:
                spec, path = recipe.sites[place.site_index], f"{block.path}.{place.local}"
                skipped = _why_skipped(rewriting, block.program, phase, spec.id, out)
                if skipped is None and not own:
                    skipped = "its share of what this phase removes rounds to none"
                removed = 0 if skipped else own
                after: Macs | None = dense[path]
                if removed and measured is not None:
                    after = _less(after, measured.sites.get(place.local), tokens, removed, size, beside)
                further = removed_further(rewriting, block.program, phase, spec.id, tokens)
                if further and removed:
                    assert phase.stage is not None
                    inner = cost.inner_cost(block, phase.stage)
                    saving = None if inner is None else inner.sites.get(place.local)
                    after = _less(after, saving, tokens - removed, further, size, beside)
                    removed += further
                reports.append(
                    SiteReport(
                        index, spec.id, spec.kind, path,
                        tokens, tokens - removed, dense[path], after, skipped, spec.merge,
                    )
                )  # fmt: skip
    return reports


def _less(
    macs: Macs | None, saving: Saving | None, tokens: int, removed: int, size: ExampleSize, beside: int
) -> Macs | None:
    """What is left of MACs; None where it cannot be told."""
    if macs is None or saving is None:
        return None
    return macs - saving.at(tokens, size.text, removed, beside) * size.batch


def _left_out(decision: GateDecision | None, phase: Phase) -> dict[str, frozenset[str]]:
    """The sites that the cost gate leaves dense in a phase, by path of the block."""
    if decision is None or phase.stage is None:
        return {}
    variants = decision.variants(Variant(stage=phase.stage), phase.remove)
    return {path: variant.left_out for path, variant in variants.items()}


def _gate_report(rewriting: Rewriting, decision: GateDecision | None) -> GateReport:
    runtime, recipe = rewriting.runtime, rewriting.recipe
    if recipe.gate == "off":
        return GateReport(False, "off in the recipe")
    if rewriting.schedules.cost.layers.levels:
        return GateReport(False, "does not weigh sites on several grids: the recipe merges wherever it says")
    if decision is None:
        key = rewriting.schedules.device_key(runtime.device, runtime.static)
        return GateReport(
            False, f"nothing was measured for {key.says()}; `{key.command()}`, then rewrite, to leave out "
            "sites where merging costs more than it saves",
        )  # fmt: skip
    paths = {
        (block.path, recipe.sites[place.site_index].id): place.path
        for block in rewriting.bindings.values()
        for place in block.places
    }
    gone = [
        GatedSite(
            recipe.stages[v.stage].name,
            v.removed,
            v.site,
            paths.get((v.block, v.site), v.block),
            v.saved,
            v.spent,
        )
        for v in decision.verdicts
        if not v.kept
    ]
    return GateReport(True, f"as measured for {decision.profile.key.says()}", tuple(gone))


def _why_skipped(
    rewriting: Rewriting, program: Program, phase: Phase, site: str, left_out: frozenset[str]
) -> str | None:
    if phase.stage is None:
        return "the step is dense"
    stage = rewriting.recipe.stages[phase.stage]
    if short_span(rewriting.recipe, program, phase, left_out) is not None:
        return None
    if (
        forecast_span(rewriting.recipe, program.spans, Variant(stage=phase.stage, left_out=left_out))
        is not None
    ):
        return None
    if site in left_out or short_span(rewriting.recipe, program, phase) is not None:
        return "the cost gate left it out"
    if site not in stage.sites:
        return f"not a site of stage {stage.name}"
    if Variant(stage=phase.stage).key not in program.functions:
        return "its block has no graph for this stage"
    return None
