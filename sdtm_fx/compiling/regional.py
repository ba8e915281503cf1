"""Compiling block by block: blocks of one structure share one graph per phase."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import torch

from sdtm_fx.capture.arguments import Leaf
from sdtm_fx.compiling.features import FeatureLayout
from sdtm_fx.compiling.phases import PhaseKey, own_code
from sdtm_fx.rewriting.programs import Program
from sdtm_fx.rewriting.spans import SpanPlace, active_span
from sdtm_fx.runtime.binding import BlockBinding
from sdtm_fx.runtime.call import BlockContext, Call, PlanKey
from sdtm_fx.runtime.state import BranchState


@dataclass
class RegionalExecutor:
    """Runs every block as the compiled function of its structure and phase; all else of the model stays eager.

    A graph must not know which block it runs in, so each block sees itself as the first one, with the part of
    the state that is its own.

    Attributes:
        options: Arguments of ``torch.compile``.
        layout: Makes the tensors of features.
        functions: The compiled functions.
    """

    options: Mapping[str, Any]
    layout: FeatureLayout
    functions: dict[tuple[Any, ...], Callable[..., Any]] = field(default_factory=dict)
    draws: dict[tuple[int, torch.device], torch.Tensor] = field(default_factory=dict)

    def __deepcopy__(self, memo: dict[int, Any]) -> None:
        """A copy of a compiled model is not compiled."""

    def run(
        self, binding: BlockBinding, block: torch.nn.Module, program: Program, call: Call, leaves: list[Leaf]
    ) -> Any:
        """Run one block; see `sdtm_fx.runtime.binding.Executor`."""
        function = None if call.variant is None else program.functions.get(call.variant.key)
        if function is None:
            key = replace(
                PhaseKey.of(call), variant=None, remove=0, fresh_plan=True, fresh_destinations=True, halves=1
            )
            return self._compiled(program.dense, (key, _layouts(leaves)), "dense")(block, *leaves)
        assert call.variant is not None
        self.layout.lay_out(call, binding.index, block, program, leaves)
        runtime, group = binding.runtime, binding.index // call.every_layers
        place = active_span(binding.cache.recipe, binding.spans, call.variant)
        own_keys = _plan_keys(group, place)
        planned = {mine: runtime.planned[its] for mine, its in own_keys.items() if its in runtime.planned}
        local = _local_state(call, binding.index, group, program.features.get(call.variant, frozenset()))
        spans = dict(runtime.spans)
        seen = BlockContext(call, binding.index, planned)
        # Blocks that remove differently, or make something else of a slot, are graphs of their own.
        own = replace(
            call,
            state=local,
            every_layers=1,
            phase=replace(call.phase, remove=seen.remove),
            removes={},
            reduce=seen.reduce,
            reduces={},
        )
        context = BlockContext(own, 0, planned, self._draw(group, leaves), spans)
        key = PhaseKey.of(own)
        label = key.label(binding.cache.recipe)
        situation = (key, own.reduce, tuple(planned), tuple(spans), _layouts(leaves))
        compiled = self._compiled(function, situation, label)
        output = compiled(block, context, *leaves)
        runtime.spans = spans
        runtime.planned.update((own_keys[mine], plan) for mine, plan in planned.items())
        if 0 in local.above:
            call.state.above[group] = local.above[0]
        return output

    def _compiled(self, function: Callable[..., Any], key: Any, label: str) -> Callable[..., Any]:
        if (function, key) not in self.functions:
            number = len(self.functions)
            copy = own_code(function, f"{function.__name__}_{label}_{number}")
            self.functions[function, key] = torch.compile(copy, **self.options)
        return self.functions[function, key]

    def _draw(self, group: int, leaves: list[Leaf]) -> torch.Tensor:
        device = next(v.device for v in leaves if isinstance(v, torch.Tensor))
        if (group, device) not in self.draws:
            with torch.inference_mode(False):
                self.draws[group, device] = torch.full((), group, dtype=torch.int64, device=device)
        return self.draws[group, device]


def _plan_keys(group: int, place: SpanPlace | None) -> dict[PlanKey, PlanKey]:
    """What the plans of a block are known by: to its graph, which takes itself for the first block, and to the call."""
    keys: dict[PlanKey, PlanKey] = {0: group}
    return keys if place is None else {**keys, (0, 0): (place.entry, group)}


def _layouts(leaves: list[Leaf]) -> tuple[bool, ...]:
    """Which arguments are views with gaps: the first FLUX single block gets whole tensors, the others slices."""
    return tuple(v.is_contiguous() for v in leaves if isinstance(v, torch.Tensor))


def _local_state(call: Call, index: int, group: int, names: frozenset[str]) -> BranchState:
    """The part of a branch that is one block's, as if it were the first."""
    state, ages = call.state, 0 if call.one_age_counter else group
    return BranchState(
        static=state.static,
        ages={0: state.ages[ages]} if call.reads("ages") and ages in state.ages else {},
        plans={0: state.plans[group]} if group in state.plans else {},
        features={(0, name): state.features[index, name] for name in sorted(names)},
        slope=state.slope,
        now=state.now,
        importance=state.importance if call.reads("importance") else None,
    )
