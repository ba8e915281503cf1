"""Where the time of a merged call goes, from the profiler: plan, merge, unmerge, features, and the rest."""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch.profiler import ProfilerActivity, profile, record_function

from sdtm_fx.rewriting.rewriting import Rewriting
from sdtm_fx.runtime import ops, rotary_ops, span_ops, stack_ops

_PARTS: dict[Callable[..., Any], str] = {
    ops.plan_tokens: "plan",
    stack_ops.plan_slots: "plan",
    ops.place_plan: "plan",
    ops.merge_tokens: "merge",
    rotary_ops.gather_rotary: "merge",
    span_ops.enter_span: "merge",
    span_ops.span_rotary: "merge",
    ops.unmerge_tokens: "unmerge",
    span_ops.leave_span: "unmerge",
    ops.blend_forecast: "unmerge",
    ops.forecast_feature: "features",
    ops.store_feature: "features",
}


def breakdown(rewriting: Rewriting, run: Callable[[], object], device: torch.device) -> dict[str, float]:
    """Share of each part in a call that runs as it is (labels do not survive compilation).

    Args:
        rewriting: The rewriting of the model.
        run: Calls the model in the next step; it is called twice.
        device: Where it runs; its own time is what counts there.
    """
    on_device = device.type == "cuda"
    activities = [ProfilerActivity.CPU, *([ProfilerActivity.CUDA] if on_device else [])]
    run()
    with _labelled(rewriting), profile(activities=activities) as profiler, record_function("sdtm_fx::call"):
        run()
    times = {e.key: e.device_time_total if on_device else e.cpu_time_total for e in profiler.key_averages()}
    total = times["sdtm_fx::call"]
    shares = {part: times.get(f"sdtm_fx::{part}", 0.0) / total for part in dict.fromkeys(_PARTS.values())}
    return {**shares, "rest": 1.0 - sum(shares.values())}


@contextlib.contextmanager
def _labelled(rewriting: Rewriting) -> Iterator[None]:
    """Inside, the operations that passes inserted show in profiles by the name of their part."""
    changed: list[tuple[dict[str, Any], str, Any]] = []
    for program in rewriting.cache.programs.values():
        for function in program.functions.values():
            names = function.__globals__
            for name, value in list(names.items()):
                if callable(value) and value.__hash__ is not None and value in _PARTS:
                    changed.append((names, name, value))
                    names[name] = _recorded(value)
    try:
        yield
    finally:
        for names, name, value in changed:
            names[name] = value


def _recorded(function: Callable[..., Any]) -> Callable[..., Any]:
    @functools.wraps(function)
    def call(*args: Any, **kwargs: Any) -> Any:
        with record_function(f"sdtm_fx::{_PARTS[function]}"):
            return function(*args, **kwargs)

    return call
