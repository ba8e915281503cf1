"""Modules whose ``forward`` was wrapped by offload or cache hooks: the forward below the wrappers.

accelerate keeps it in ``_old_forward``; diffusers keeps it in the first entry of its hook registry.
Both wrap by setting ``forward`` on the instance. A rewrite goes below such wrappers, so that weights
are still moved before it runs.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from typing import Any

import torch

Forward = Callable[..., Any]


def set_inner_forward(module: torch.nn.Module, forward: Forward) -> Forward | None:
    """Put `forward` below the hooks of a module (or on the module itself), and return what it replaces.

    Returns:
        The former inner forward if it was set on the instance, None if it was the class's own.
    """
    own = module.__dict__.get("forward")
    registry = getattr(module, "_diffusers_hook", None)
    former: Forward | None
    if "_old_forward" in module.__dict__:
        former = module.__dict__["_old_forward"]
        module.__dict__["_old_forward"] = forward
        return former
    if registry is not None and registry._fn_refs:
        first = registry._fn_refs[0]
        slot = "forward" if first.original_forward is None else "original_forward"
        former = getattr(first, slot)
        setattr(first, slot, forward)
        return former
    module.__dict__["forward"] = forward
    return own


def clear_inner_forward(module: torch.nn.Module, former: Forward | None) -> None:
    """Undo `set_inner_forward`; hooks added or removed in between are respected."""
    if former is not None:
        set_inner_forward(module, former)
        return
    if "_old_forward" in module.__dict__ or (
        getattr(module, "_diffusers_hook", None) is not None and module._diffusers_hook._fn_refs
    ):
        set_inner_forward(module, type(module).forward.__get__(module))
        return
    module.__dict__.pop("forward", None)


def is_hooked(module: torch.nn.Module) -> bool:
    """Whether calling a module does more than its class's forward: what reads its weights past it would miss that."""
    return "forward" in module.__dict__ or bool(module._forward_hooks or module._forward_pre_hooks)


def traits(module: torch.nn.Module) -> tuple[type, bool, type]:
    """What a rewritten graph assumes about a module that it calls: its type, hooks, and the type of its weight."""
    return type(module), is_hooked(module), type(module._parameters.get("weight"))


@contextlib.contextmanager
def hooks_bypassed(model: torch.nn.Module) -> Iterator[None]:
    """Take instance forwards out of the way: inside, every module runs its class's own forward.

    Offload hooks move real weights; while tracing on fake tensors they must not run.
    """
    wrapped = [(m, m.__dict__.pop("forward")) for m in model.modules() if "forward" in m.__dict__]
    try:
        yield
    finally:
        for module, forward in wrapped:
            module.__dict__["forward"] = forward
