"""`record_plans`: notes which tokens shared a slot, while a rewritten model is used as always."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor, nn

from sdtm_fx.base_plan import Plan
from sdtm_fx.errors import RewriteError
from sdtm_fx.explaining.plan_record import Action, PlanRecord, SiteRecord
from sdtm_fx.grids import coarser, tokens_on
from sdtm_fx.plan import MergePlan
from sdtm_fx.recipe.match import compile_match
from sdtm_fx.recipe.schema import Recipe
from sdtm_fx.recipe.sections import SiteSpec
from sdtm_fx.rewrite import rewritten_models
from sdtm_fx.rewriting.rewriting import Rewriting, rewriting_of
from sdtm_fx.rewriting.spans import active_span, forecast_span, sites_inside
from sdtm_fx.rewriting.work import SitePlace
from sdtm_fx.runtime.call import BlockContext, PlanKey, Variant
from sdtm_fx.stacking import composed

_Slots = tuple[Tensor | None, Tensor | None]
"""`SiteRecord.assign` and `SiteRecord.positions`."""

_NO_SLOTS: _Slots = (None, None)


@contextlib.contextmanager
def record_plans(target: Any) -> Iterator[PlanRecord]:
    """Record what every site does inside the ``with`` block: which tokens share a slot, and where none do.

    Results are those without the recording, bit for bit: plans are read and copied to the CPU, which makes the
    host wait for a device. Outside of the block nothing is left behind. A call of the model that fails is not
    recorded. Memory grows with every call: [B, N] and [B, M] int32 for each plan.

    Args:
        target: What was given to `rewrite`, or the model inside.

    Yields:
        The record; it is kept after the block. `PlanRecord.at` picks from it.

    Raises:
        RewriteError: Nothing is rewritten there, it is compiled, or it is rewritten anew inside the block.
    """
    record = PlanRecord()
    with contextlib.ExitStack() as stack:
        for model in rewritten_models(target):
            rewriting = rewriting_of(model)
            assert rewriting is not None
            _refuse_compiled(model, rewriting)
            _Recorder(model, rewriting, record).install(stack)
        yield record


def _refuse_compiled(model: nn.Module, rewriting: Rewriting) -> None:
    """Plans are tensors inside compiled code, which nobody outside can read."""
    if rewriting.is_compiled:
        raise RewriteError(
            f"record_plans: {type(model).__name__} is compiled; record before sdtm_fx.compile, "
            "or rewrite the model once more, which takes the compilation back"
        )


class _Recorder:
    """Follows the calls of one model."""

    def __init__(self, model: nn.Module, rewriting: Rewriting, record: PlanRecord) -> None:
        self._model, self._rewriting, self._record = model, rewriting, record
        self._places = {path: binding.places for path, binding in rewriting.bindings.items()}
        self._places |= {path: _places_in(model, path, rewriting.recipe) for path in rewriting.kept}
        self._paths = {binding.index: path for path, binding in rewriting.bindings.items()}
        self._ran: dict[str, None] = {}
        self._graphs: dict[str, tuple[BlockContext, Variant]] = {}
        self._first_generation: int | None = None
        self._step: tuple[int, int] | None = None
        self._calls = 0

    def install(self, stack: contextlib.ExitStack) -> None:
        """Put the hooks in place; `stack` removes them."""
        handles = [
            self._model.register_forward_pre_hook(self._begin),
            # In front of the rewriting's own hook, which ends the call and drops its plans.
            self._model.register_forward_hook(self._end, prepend=True),
        ]
        for path in self._places:
            handles.append(self._model.get_submodule(path).register_forward_hook(self._note_run(path)))
        for handle in handles:
            stack.callback(handle.remove)
        watchers = self._rewriting.runtime.watchers
        watchers.append(self._note_graph)
        stack.callback(watchers.remove, self._note_graph)

    def _begin(self, model: nn.Module, args: Any) -> None:
        self._ran, self._graphs = {}, {}

    def _note_run(self, path: str) -> Callable[..., None]:
        def note(block: nn.Module, args: Any, output: Any) -> None:
            self._ran[path] = None

        return note

    def _note_graph(self, context: BlockContext, variant: Variant) -> None:
        self._graphs[self._paths[context.block]] = (context, variant)

    def _end(self, model: nn.Module, args: Any, output: Any) -> None:
        rewriting = rewriting_of(model)
        if rewriting is None:
            return  # restored inside the block: there is nothing to tell any more
        if rewriting is not self._rewriting:
            raise RewriteError(
                f"record_plans: {type(model).__name__} was rewritten anew inside the block; "
                "leave the block first, and record the new rewriting in a block of its own"
            )
        moment = rewriting.runtime.moment
        assert moment is not None
        if self._first_generation is None:
            self._first_generation = moment.generation
        step = (moment.generation - self._first_generation, moment.step)
        self._calls = self._calls + 1 if step == self._step else 0
        self._step = step
        copies: dict[tuple[int, ...], _Slots] = {}  # blocks and sites that share a plan share its copy
        self._record.add([s for path in self._ran for s in self._block_sites(path, step, copies)])

    def _block_sites(
        self, path: str, step: tuple[int, int], copies: dict[tuple[int, ...], _Slots]
    ) -> Iterator[SiteRecord]:
        runtime, recipe = self._rewriting.runtime, self._rewriting.recipe
        size = runtime.last
        assert size is not None
        context, variant = self._graphs.get(path, (None, Variant(stage=None)))
        stage = None if variant.stage is None else recipe.stages[variant.stage]
        for place in self._places[path]:
            spec = recipe.sites[place.site_index]
            entry = self._span_entry(path, variant)
            further = entry is not None and spec.id in sites_inside(recipe, variant.stage)
            action = (
                "merged"
                if entry is not None
                else self._whole(path, variant) or _action(recipe, variant, spec)
            )
            if further and spec.merge == "keys":
                action = "keys"
            grid = coarser(size.grid, spec.downsample)
            kept, slots = tokens_on(grid), _NO_SLOTS
            if action == "forecast":
                kept = 0
            elif action in ("merged", "keys"):
                assert context is not None
                every = context.call.every_layers
                keys: list[PlanKey] = [(context.block if entry is None else entry) // every]
                if further and entry is not None:
                    keys.append((entry, context.block // every))
                kept, slots = self._slots(context, tuple(keys), copies)
            yield SiteRecord(
                generation=step[0],
                step=step[1],
                steps=size.steps,
                call=self._calls,
                context=runtime.context_name,
                block=path,
                site=spec.id,
                kind=spec.kind,
                path=place.path,
                action=action,
                stage=None if stage is None else stage.name,
                grid=grid,
                kept=kept,
                assign=slots[0],
                positions=slots[1],
                cached=action in ("merged", "keys") and stage is not None and stage.method.caches,
            )

    def _slots(
        self, context: BlockContext, keys: tuple[PlanKey, ...], copies: dict[tuple[int, ...], _Slots]
    ) -> tuple[int, _Slots]:
        """How many slots a plan keeps, and a copy of it; of two plans, one over the other, for both together."""
        plans = [context.planned[key] for key in keys]
        plan, *inner = plans
        assert isinstance(plan, Plan)
        known = tuple(map(id, plans))
        size = self._rewriting.runtime.last
        assert size is not None
        if inner:
            assert isinstance(plan, MergePlan) and isinstance(inner[0], MergePlan)  # noqa: PT018 - recipes see to it
            plan = composed(plan, inner[0])
        if known not in copies:
            copies[known] = _copy(plan.slots, size.batch), _copy(plan.positions, size.batch)
        return plan.kept, copies[known]

    def _whole(self, path: str, variant: Variant) -> Action | None:
        """What happens to a block that is forecast with its neighbours, or stored for; None for all other blocks."""
        binding, recipe = self._rewriting.bindings.get(path), self._rewriting.recipe
        if binding is None or forecast_span(recipe, binding.spans, variant) is None:
            return None
        return "refresh" if variant.stage is None else "forecast"

    def _span_entry(self, path: str, variant: Variant) -> int | None:
        """Number of the block that merged the tokens of a block inside a span; None for all other blocks."""
        binding, recipe = self._rewriting.bindings.get(path), self._rewriting.recipe
        place = None if binding is None else active_span(recipe, binding.spans, variant)
        if place is None or not place.is_short(recipe.spans[place.span_index]):
            return None
        return place.entry


def _places_in(model: nn.Module, block: str, recipe: Recipe) -> tuple[SitePlace, ...]:
    """The sites in a block that is kept dense; a rewriting knows only those in rewritten ones."""
    names = [name for name, _ in model.get_submodule(block).named_modules() if name]
    return tuple(
        SitePlace(index, name, f"{block}.{name}")
        for index, spec in enumerate(recipe.sites)
        for name in names
        if compile_match(spec.match)(f"{block}.{name}")
    )


def _action(recipe: Recipe, variant: Variant, site: SiteSpec) -> Action:
    """What a site does in the graph of a variant."""
    if site.id in variant.left_out:
        return "dense"
    keyed = site.merge == "keys"
    if variant.stage is not None and site.id in recipe.stages[variant.stage].sites:
        merging: Action = "keys" if keyed else "merged"
        return merging if recipe.stages[variant.stage].method.merges else "forecast"
    if variant.refresh is not None and site.id in recipe.stages[variant.refresh].sites and not keyed:
        return "refresh"
    return "dense"


def _copy(rows: Tensor, batch: int) -> Tensor:
    """[B, L] int32 on the CPU, whatever the plan does with its own tensor later."""
    copy = rows.to("cpu", torch.int32)
    return copy if copy.shape[0] == batch else copy.expand(batch, -1)
