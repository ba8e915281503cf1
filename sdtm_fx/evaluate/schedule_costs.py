"""What whole schedules of a recipe cost on a model, without rewriting it again for each."""

from __future__ import annotations

import functools
import math
from collections.abc import Collection, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import torch

from sdtm_fx.capture.arguments import Signature
from sdtm_fx.capture.example import text_length
from sdtm_fx.cost.counter import Macs
from sdtm_fx.cost.model import CostModel
from sdtm_fx.errors import RewriteError
from sdtm_fx.explaining.explain import explain
from sdtm_fx.phase import Phase, Schedule
from sdtm_fx.recipe.schema import Recipe
from sdtm_fx.rewrite import rewritten
from sdtm_fx.rewriting.programs import stores_enough
from sdtm_fx.rewriting.rewriting import rewriting_of
from sdtm_fx.runtime.grid import GridReader
from sdtm_fx.runtime.refreshes import Suffices, add_refreshes
from sdtm_fx.runtime.schedules import CallSize
from sdtm_fx.schedule import build_schedule


@dataclass(frozen=True)
class Costs:
    """What steps cost on one model at one size, by stage and tokens removed; the same as `explain` says.

    Attributes:
        model: The cost model of the rewritten blocks.
        refreshes: Whether features stored for one stage serve another.
        dense: MACs of one call of the dense model.
        size: Steps, grid, batch and text tokens.
    """

    model: CostModel
    refreshes: Suffices
    dense: Macs
    size: CallSize
    _known: dict[tuple[int, int, bool, bool], list[tuple[int, float]]] = field(
        default_factory=dict, repr=False
    )
    _answers: dict[tuple[int, int, int, bool, bool], float] = field(default_factory=dict, repr=False)
    _speedups: dict[str, float] = field(default_factory=dict, repr=False)

    def without(self, blocks: Collection[int]) -> Costs:
        """The same with some blocks left whole in every step, as `keep_dense.layers` has it.

        Args:
            blocks: Their numbers in the order in which the model runs them.
        """
        rewritten = tuple(block for block in self.model.blocks if block.index not in blocks)
        programs = {id(block.program): block.program for block in rewritten}
        suffices = functools.partial(stores_enough, self.model.recipe, tuple(programs.values()))
        return Costs(replace(self.model, blocks=rewritten), suffices, self.dense, self.size)

    def schedule(self, recipe: Recipe) -> Schedule:
        """The schedule that a generation with a recipe would follow.

        Args:
            recipe: Differs from the measured one in ratios and dense steps only.

        Raises:
            ScheduleError: It cannot be scheduled at this size.
        """
        size = self.size
        blocks = self.model.step_cost(size.grid, size.text, size.references)(None, 0)

        @functools.cache
        def cost(stage: int | None, remove: int) -> float:
            return blocks if stage is None else blocks - self._saved(Phase(stage, remove, refresh=False), 1)

        schedule = build_schedule(recipe, steps=size.steps, grid=size.grid, cost=cost)
        return schedule if recipe.reuse is None else add_refreshes(schedule, self.refreshes)

    def speedup(self, recipe: Recipe) -> float:
        """Dense over total MACs of a whole generation with a recipe.

        Args:
            recipe: As for `schedule`. Steps whose count is measured while sampling (SDTM*) count as dense.

        Raises:
            ScheduleError: It cannot be scheduled at this size.
        """
        key = recipe.fingerprint()
        if key not in self._speedups:
            self._speedups[key] = self._speedup(self.schedule(recipe))
        return self._speedups[key]

    def _speedup(self, schedule: Schedule) -> float:
        phases = [schedule.phase(step) for step in range(schedule.steps)]
        saved = sum(self._saved(phase, self.size.batch) for phase in phases if phase.stage is not None)
        whole = self.dense.total * schedule.steps
        return whole / (whole - saved)

    def _saved(self, phase: Phase, batch: int) -> float:
        """Total MACs that the stage of a phase saves in one call.

        Blocks, attention and the search for tokens each cost a polynomial of third degree in the removed tokens
        at most, so four counts tell all; asking the cost model for each would take most of the time.
        """
        if not phase.remove or phase.stage is None:
            return 0.0
        method, size = self.model.recipe.stages[phase.stage].method, self.size
        if (
            self.model.layers.scales or self.model.layers.levels
        ):  # rounded per layer, the cost is no polynomial
            return self._asked(phase, phase.remove, batch)
        key = (phase.stage, batch, phase.fresh_plan, phase.fresh_destinations)
        if key not in self._known:
            unit, most = method.quantum(), method.capacity(size.grid)
            counts = [unit, most // unit // 3 * unit, most // unit * 2 // 3 * unit, most]
            self._known[key] = [
                (count, self._asked(phase, count, batch))
                for count in sorted({*(counts if method.merges else counts[-1:])} - {0})
            ]
        return _polynomial(self._known[key], phase.remove)

    def _asked(self, phase: Phase, count: int, batch: int) -> float:
        """The same for another count, by the cost model, which is asked once for each."""
        assert phase.stage is not None
        size = self.size
        key = (phase.stage, count, batch, phase.fresh_plan, phase.fresh_destinations)
        if key not in self._answers:
            self._answers[key] = self.model.saved(
                phase.stage, size.grid, size.text, count, batch,
                fresh_plan=phase.fresh_plan, fresh_destinations=phase.fresh_destinations,
                references=size.references,
            ).total  # fmt: skip
        return self._answers[key]


def _polynomial(points: Sequence[tuple[int, float]], at: int) -> float:
    """Value of the polynomial through all points (Lagrange)."""
    return sum(
        value * math.prod((at - other) / (place - other) for other, _ in points if other != place)
        for place, value in points
    )


def probe_size(
    pipeline: Any, recipe: Recipe, *, steps: int, height: int, width: int, guidance_scale: float | None = None
) -> CallSize:
    """Find out how large the calls of the denoiser are, by one denoising step of the pipeline for one image.

    Args:
        pipeline: A diffusers pipeline.
        recipe: Says where the grid and the text are.
        steps: Denoising steps that the result is for.
        height: Pixels.
        width: Pixels.
        guidance_scale: Of the pipeline; None takes its default.

    Raises:
        RewriteError: The pipeline has no model that the recipe is for.
    """
    models = [m for m in pipeline.components.values() if isinstance(m, torch.nn.Module)]
    model = next((m for m in models if type(m).__name__ in recipe.model), None)
    if model is None:
        raise RewriteError(
            f"recipe {recipe.name!r} is for {', '.join(recipe.model)}, and {type(pipeline).__name__} has none"
        )
    seen: list[CallSize] = []
    signature, reader = Signature.of(type(model).forward), GridReader(recipe.tokens)

    def note(module: torch.nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        arguments = signature.bind(args, kwargs)
        batch = next(v for v in arguments.values() if isinstance(v, torch.Tensor)).shape[0]
        layout, text = reader.read(arguments), text_length(recipe, arguments)
        seen.append(CallSize(steps, layout.grid, batch, text, layout.references))

    settings: dict[str, Any] = {} if guidance_scale is None else {"guidance_scale": guidance_scale}
    handle = model.register_forward_pre_hook(note, with_kwargs=True)
    try:
        with torch.no_grad():
            pipeline(
                prompt=[""], height=height, width=width, num_inference_steps=1, output_type="latent",
                generator=torch.Generator().manual_seed(0), **settings,
            )  # fmt: skip
    finally:
        handle.remove()
    return seen[0]


def measure_costs(recipe: Recipe, target: Any, size: CallSize) -> Costs:
    """Measure what a recipe's steps cost; nothing is computed but shapes, and the target is left as it was.

    Args:
        recipe: A recipe; its ratios and dense steps do not matter.
        target: A pipeline or a model that is not rewritten.
        size: Steps, grid, batch and text tokens.

    Raises:
        RewriteError: The target is rewritten already.
        SdtmFxError: What `rewrite` and `explain` raise.
    """
    components = getattr(target, "components", {"model": target})
    models = [m for m in components.values() if isinstance(m, torch.nn.Module)]
    if any(rewriting_of(model) is not None for model in models):
        raise RewriteError(f"{type(target).__name__} is rewritten already; call sdtm_fx.restore(it) first")
    with rewritten(target, recipe.override(gate="off")):
        rewriting = next(r for m in models if (r := rewriting_of(m)) is not None)
        schedules = rewriting.schedules
        told = explain(
            target, steps=size.steps, grid=recipe.tokens.whole(size.grid), batch=size.batch,
            text=size.text or None, references=size.references, quiet=True,
        )  # fmt: skip
    return Costs(schedules.cost, schedules.refreshes, told.dense, size)
