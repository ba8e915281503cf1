"""Modules whose ``forward`` was wrapped by offload or cache hooks: the forward below the wrappers.

accelerate keeps it in ``_old_forward``; diffusers keeps it in the first entry of its hook registry.
Both wrap by setting ``forward`` on the instance. A rewrite goes below such wrappers, so that weights
are still moved before it runs.
"""

from __future__ import annotations

import contextlib
from collections import OrderedDict
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
    former: Forward | None
    if "_old_forward" in module.__dict__:
        former = module.__dict__["_old_forward"]
        module.__dict__["_old_forward"] = forward
        return former
    if _has_diffusers_hooks(module):
        registry: Any = module._diffusers_hook
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
    if is_wrapped(module):
        set_inner_forward(module, type(module).forward.__get__(module))
        return
    module.__dict__.pop("forward", None)


def is_wrapped(module: torch.nn.Module) -> bool:
    """Whether accelerate or diffusers hooks wrap a module's forward."""
    return "_old_forward" in module.__dict__ or _has_diffusers_hooks(module)


def _has_diffusers_hooks(module: torch.nn.Module) -> bool:
    registry = module.__dict__.get("_diffusers_hook")
    return registry is not None and bool(registry._fn_refs)


def is_hooked(module: torch.nn.Module) -> bool:
    """Whether calling a module does more than its class's forward, which reading its weights would miss."""
    return "forward" in module.__dict__ or bool(module._forward_hooks or module._forward_pre_hooks)


def traits(module: torch.nn.Module) -> tuple[type, bool, type]:
    """What a rewritten graph assumes about a module that it calls: type, hooks, and type of its weight."""
    return type(module), is_hooked(module), type(module._parameters.get("weight"))


@contextlib.contextmanager
def hooks_bypassed(model: torch.nn.Module) -> Iterator[None]:
    """Take hooks and instance forwards out of the way: inside, every module runs its class's own forward.

    Offload hooks move real weights, and hooks of the user expect real values; tracing has neither.
    """
    aside: list[tuple[torch.nn.Module, str, Any]] = []
    try:
        for module in model.modules():
            for name in ("forward", "_forward_hooks", "_forward_pre_hooks"):
                if module.__dict__.get(name):
                    aside.append((module, name, module.__dict__.pop(name)))
                    if name != "forward":
                        module.__dict__[name] = OrderedDict()
        yield
    finally:
        for module, name, value in aside:
            module.__dict__[name] = value
