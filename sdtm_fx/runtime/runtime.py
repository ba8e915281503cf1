"""The runtime of one rewritten model: at each call it finds the phase, and hands it to the blocks."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Hashable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from typing import Any, Protocol

import torch

from sdtm_fx.capture.arguments import Signature
from sdtm_fx.capture.example import text_length
from sdtm_fx.clock import Clock, Moment
from sdtm_fx.clock_sources import ManualSteps
from sdtm_fx.cost.decision import GateDecision
from sdtm_fx.errors import PlanError
from sdtm_fx.grids import TokenGrid, tokens_on
from sdtm_fx.idle_stages import NoOps
from sdtm_fx.layer_rates import LayerRates
from sdtm_fx.phase import Phase, Schedule
from sdtm_fx.recipe.ratio import ThresholdRatio
from sdtm_fx.recipe.schema import Recipe
from sdtm_fx.rewriting.serving import dense_variant
from sdtm_fx.runtime.call import BlockContext, Call, OpenSpan, OpenStream, PlanKey, Variant
from sdtm_fx.runtime.grid import GridReader
from sdtm_fx.runtime.guidance import check_importance, guidance_change
from sdtm_fx.runtime.inside import inside_of
from sdtm_fx.runtime.layout import lay_out_ages, lay_out_plans
from sdtm_fx.runtime.refreshes import next_stage
from sdtm_fx.runtime.schedules import CallSize
from sdtm_fx.runtime.state import BranchState, RunState
from sdtm_fx.runtime.stepping import begin_step, choose_phase

_TIMESTEPS = ("timestep", "timesteps", "t")

Watcher = Callable[[BlockContext, Variant], None]
"""Told which graph a rewritten block is about to run."""


class Scheduler(Protocol):
    """Knows the schedules of a model; see `sdtm_fx.runtime.schedules.Schedules`."""

    def asked(self, size: CallSize) -> Schedule:
        """The schedule without the cost gate."""

    def gate(self, size: CallSize, device: torch.device | None, compiled: bool) -> GateDecision | None:
        """What the cost gate decides, None where it decides nothing."""


@dataclass
class Runtime:
    """Everything that changes while a rewritten model runs; blocks read `call`.

    Attributes:
        recipe: The recipe.
        clock: Says which step it is.
        signature: Parameters of the model's forward.
        schedules: Say which phase each step runs.
        groups: The plan groups of the rewritten blocks.
        layers: What blocks remove, and make of a slot, that differ from the rest.
        state: What lives across steps.
        static: Whether state is laid out before the blocks run and stays where it is, as compiled code asks for.
        marks_steps: Whether CUDA graphs are told that a call starts, and may write over the outputs of the last.
        rehearses: Whether calls run phases out of their order: each as if it were the first call of its step.
        forced: In a rehearsal, the phase to run whatever the schedule says.
        call: The model call in progress, None outside of one.
        planned: Plans made in this call.
        spans: Spans that were entered in this call and not left yet, by id.
        watchers: Told what each rewritten block runs; empty unless someone records.
    """

    recipe: Recipe
    clock: Clock
    signature: Signature
    schedules: Scheduler
    groups: tuple[int, ...] = ()
    layers: LayerRates = field(default_factory=LayerRates)
    static: bool = False
    marks_steps: bool = False
    rehearses: bool = False
    forced: Phase | None = None
    state: RunState = field(default_factory=RunState)
    call: Call | None = None
    planned: dict[PlanKey, object] = field(default_factory=dict)
    spans: dict[str, OpenSpan | OpenStream] = field(default_factory=dict)
    manual_halves: int | None = None
    watchers: list[Watcher] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.grid = GridReader(self.recipe.tokens)
        self.device: torch.device | None = None
        self._reads_importance = self.recipe.wants("importance")
        self._hands_importance_on = False
        self._generation: int | None = None
        self._evaluation: tuple[int, int] | None = None
        self._calls_in_evaluation = 0
        self._steps_begun: set[tuple[Hashable, int]] = set()
        self.context_name: str | None = None
        self.last: CallSize | None = None
        self.moment: Moment | None = None
        self._no_ops = NoOps()

    def schedule(
        self, steps: int, grid: TokenGrid, text: int, batch: int = 1, references: int = 0
    ) -> Schedule:
        """The schedule of a generation.

        Args:
            steps: Denoising steps.
            grid: Sides of the grid of the tokens that may be merged.
            text: Text tokens.
            batch: Samples per call; the cost gate asks for it.
            references: Tokens of reference images.

        Raises:
            ScheduleError: The recipe cannot be scheduled for this number of steps and this grid.
        """
        size = CallSize(steps, grid, batch, text, references)
        decision = self.gate(size)
        return self.schedules.asked(size) if decision is None else decision.schedule

    def gate(self, size: CallSize) -> GateDecision | None:
        """What the cost gate decides for a generation; None where it is off or has nothing to go by."""
        return self.schedules.gate(size, self.device, self.static)

    def begin(self, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> bool:
        """Prepare a call of the model: find step, grid, phase and state. Runs before its forward.

        Returns:
            Whether a new generation starts.

        Raises:
            ClockError: The step is not known.
            PlanError: The grid is not known.
            ScheduleError: The recipe cannot be scheduled for this number of steps and this grid.
        """
        if self.marks_steps:
            torch.compiler.cudagraph_mark_step_begin()
        arguments = self.signature.bind(args, kwargs)
        timestep = next((arguments[n] for n in _TIMESTEPS if arguments.get(n) is not None), None)
        moment = self.clock.moment(timestep)
        layout = self.grid.read(arguments)
        tensor = next(v for v in arguments.values() if isinstance(v, torch.Tensor))
        batch = tensor.shape[0]
        self.device = tensor.device
        starts = self._note_time(moment)
        stacked = self._stacked(batch)
        halves = stacked if "cfg" in self.recipe.plan.share else 1
        branch = (0 if self.rehearses else self.context_name or self._calls_in_evaluation, batch, layout)
        self._calls_in_evaluation += 1
        state = self.state.branch(branch)
        self.moment = moment
        text = text_length(self.recipe, arguments)
        self.last = CallSize(moment.count, layout.grid, batch, text, layout.references)
        self.call = self._make_call(moment, self.last, branch, state, halves, tensor.device)
        if starts and not self.rehearses:
            decision = self.gate(self.last)
            decided = None if decision is None else decision.schedule
            self._no_ops.warn(self.recipe, self.schedules.asked(self.last), decided)
        self._hands_importance_on = self._reads_importance and stacked == 2
        if "importance" in _wanted(self.call):
            check_importance(state, stacked, rehearses=self.rehearses)
        self.planned, self.spans = {}, {}
        return starts

    @contextlib.contextmanager
    def rehearsal(self, steps: int, halves: int) -> Iterator[ManualSteps]:
        """Run phases out of their order: inside, set `clock.step` and `forced` as you like.

        Args:
            steps: Denoising steps of the schedule.
            halves: CFG halves in each batch.
        """
        with self.clock.manual(steps) as clock:
            self.rehearses, self.manual_halves = True, halves
            try:
                yield clock
            finally:
                self.rehearses, self.manual_halves, self.forced = False, None, None

    def guided(self) -> bool:
        """Whether the pipeline in charge stacks CFG halves in one batch right now; a bare model cannot say."""
        return bool(getattr(self.clock.pipeline, "do_classifier_free_guidance", False))

    def end(self, output: Any = None) -> None:
        """Leave the call; blocks that are called on their own then run their own forward.

        Args:
            output: What the model returned, None where it failed.

        Raises:
            PlanError: The next call is to read scores off the output, and it is nothing they could be read off.
        """
        call, self.call = self.call, None
        self.planned, self.spans = {}, {}
        if call is not None and output is not None and self._hands_importance_on:
            call.state.set_importance(guidance_change(output, call.grid, call.protected_frames))

    def close(self) -> None:
        """Forget the plans of a call whose forward is done.

        Raises:
            PlanError: A span was entered and not left.
        """
        self.planned = {}
        if self.spans:
            raise PlanError(
                f"the block that ends span {next(iter(self.spans))!r} has not run in this call "
                "(skip_layers, or a cache that leaves blocks out?)"
            )

    def _note_time(self, moment: Moment) -> bool:
        starts = moment.generation != self._generation
        if starts:
            self._generation = moment.generation
            self.state.clear(keep_tensors=self.static)
            self._steps_begun.clear()
        if (moment.generation, moment.evaluation) != self._evaluation:
            self._evaluation = (moment.generation, moment.evaluation)
            self._calls_in_evaluation = 0
        return starts

    def _stacked(self, batch: int) -> int:
        """CFG halves stacked in this call's batch."""
        if self.manual_halves is not None:
            return self.manual_halves
        # A second call in one step (skip-layer guidance) and calls in a named context hold one half only.
        stacked = self._calls_in_evaluation == 0 and self.context_name is None and self.guided()
        return 2 if stacked and batch % 2 == 0 else 1

    def _make_call(
        self,
        moment: Moment,
        size: CallSize,
        branch: Hashable,
        state: BranchState,
        halves: int,
        device: torch.device,
    ) -> Call:
        recipe, step = self.recipe, moment.step
        decision = self.gate(size)
        schedule = self.schedules.asked(size) if decision is None else decision.schedule
        phase = choose_phase(self.recipe, schedule, step, state, self.forced)
        served = phase.stage if phase.stage is not None else next_stage(schedule, step)
        stage = None if served is None else recipe.stages[served]
        variant = self.variant(schedule, step, phase)
        begin_step(self.recipe, moment, phase, state, device)
        ratio = recipe.ratio if stage is None or stage.ratio is None else stage.ratio
        first = self.rehearses or (branch, step) not in self._steps_begun
        self._steps_begun.add((branch, step))
        call = Call(
            variant=variant,
            phase=phase,
            method=None if stage is None else stage.method,
            grid=size.grid,
            halves=halves,
            share_batch="batch" in recipe.plan.share,
            every_layers=recipe.plan.every_layers,
            keep_plans=recipe.plan.keeps_plans,
            one_age_counter=recipe.plan.ages == "call",
            advance_ages=first,
            state=state,
            forecast_order=recipe.reuse.order if recipe.reuse is not None else 0,
            forecast_weight=recipe.reuse.weight if recipe.reuse is not None else 1.0,
            threshold=ratio.threshold if isinstance(ratio, ThresholdRatio) else None,
            salt=state.salt,
            prompt_bias=state.prompt_bias,
            reduce=None if stage is None else stage.reduce,
            reduces=self.layers.reduces,
            updates_tokens=recipe.reuse is not None and recipe.reuse.update == "tokens",
            levels=self.layers.levels,
            gated={} if decision is None else decision.variants(variant, phase.remove),
            gated_stores={}
            if decision is None or served is None
            else decision.variants(dense_variant(recipe, served), 0),
            protected_frames=recipe.tokens.protect.first_frames,
            references=size.references,
        )
        if stage is not None and phase.stage is not None:
            tokens = tokens_on(size.grid)
            removes = self.layers.removes(phase.remove, stage.method, size.grid)
            inside = inside_of(stage, tokens - phase.remove, recipe.plan.round_to)
            call = replace(call, removes=removes, inside=inside)
        if self._reads_importance and (self.static or self.rehearses):
            state.lay_out_importance(size.batch, tokens_on(size.grid), device)
        if self.static:
            state.static = True
            lay_out_ages(call, self.groups, size.batch, device)
            lay_out_plans(call, self.groups, size.batch, device)
        return call

    def variant(self, schedule: Schedule, step: int, phase: Phase) -> Variant | None:
        """The graphs that run where a step runs a phase; None where blocks run their own forward."""
        if phase.stage is not None:
            return Variant(stage=phase.stage)
        served = next_stage(schedule, step)
        dense = Variant(stage=None) if served is None else dense_variant(self.recipe, served)
        return None if dense == Variant(stage=None) and self.recipe.prompt is None else dense


def _wanted(call: Call) -> frozenset[str]:
    """What the plans of a call read beside the tokens."""
    merges = call.method is not None and call.phase.stage is not None
    return call.method.wants() if merges and call.method is not None else frozenset()
