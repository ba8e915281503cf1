"""State as plain tensors by name: what goes into a phase that was exported, beside the arguments of the model."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace

import torch

from sdtm_fx.base_plan import Plan
from sdtm_fx.runtime.call import Call
from sdtm_fx.runtime.feature import Feature
from sdtm_fx.runtime.state import BranchState

FeatureKey = tuple[int, str]


def state_tensors(call: Call, features: Sequence[FeatureKey]) -> dict[str, torch.Tensor]:
    """The tensors that one phase reads or writes, in a fixed order. It writes them in place.

    Args:
        call: A call in that phase, laid out.
        features: Number of block and name of every feature that the phase stores or reads.
    """
    state, variant = call.state, call.variant
    tensors: dict[str, torch.Tensor] = {}
    if variant is None:
        return tensors
    for index, name in features:
        for part, tensor in state.features[index, name].tensors().items():
            if variant.refresh is None or part.startswith("newer"):  # a refresh shifts before it runs
                tensors[f"feature.{index}.{name}.{part}"] = tensor
    if call.dates_tokens and features and state.now is not None:
        tensors["now"] = state.now
    # By what the phase reads, not by what is there: a second generation finds the tensors of the first.
    if variant.stage is not None:
        if call.reads("ages"):
            tensors |= {f"ages.{key}": ages for key, ages in sorted(state.ages.items())}
        if call.keep_plans:
            for group, plan in sorted(state.plans.items()):
                tensors |= dict(zip(_plan_keys(group, plan), plan.tensors(), strict=True))
        slope = state.slope if call.forecast_order == 1 and features else None
        if call.reads("importance") and state.importance is not None:
            tensors["importance"] = state.importance
        scalars = {"slope": slope, "salt": state.salt}
        tensors |= {name: value for name, value in scalars.items() if value is not None}
    return tensors if state.prompt_bias is None else {**tensors, "prompt_bias": state.prompt_bias}


def call_with(call: Call, tensors: Mapping[str, torch.Tensor], features: Sequence[FeatureKey]) -> Call:
    """The same call on other tensors: the inverse of `state_tensors`.

    Args:
        call: A call in the phase.
        tensors: What `state_tensors` names.
        features: As for `state_tensors`.
    """
    pairs = {
        (index, name): Feature(
            tensors[f"feature.{index}.{name}.newer"],
            *(tensors.get(f"feature.{index}.{name}.{part}") for part in ("older", "newer_at", "older_at")),
        )
        for index, name in features
        if call.variant is not None
    }
    state = BranchState(
        static=True,
        ages={key: tensors[f"ages.{key}"] for key in call.state.ages if f"ages.{key}" in tensors},
        plans={
            group: plan.with_tensors(tensors[key] for key in _plan_keys(group, plan))
            for group, plan in call.state.plans.items()
            if tensors.keys() >= set(_plan_keys(group, plan))
        },
        features=pairs,
        slope=tensors.get("slope"),
        now=tensors.get("now"),
        importance=tensors.get("importance"),
    )
    return replace(call, state=state, salt=tensors.get("salt"), prompt_bias=tensors.get("prompt_bias"))


def _plan_keys(group: int, plan: Plan) -> tuple[str, ...]:
    """What the tensors of a group's plan are carried as, in the order of `Plan.tensors`."""
    return tuple(f"plan.{group}.{name}" for name in plan.names())
