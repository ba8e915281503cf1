"""A rewriting: one model, one recipe, and what was put in place of its blocks."""

from __future__ import annotations

import contextlib
import types
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import fx
from torch.utils.hooks import RemovableHandle

from sdtm_fx.recipe.schema import Recipe
from sdtm_fx.rewriting.programs import ProgramCache
from sdtm_fx.runtime.binding import BlockBinding
from sdtm_fx.runtime.runtime import Runtime

ATTRIBUTE = "_sdtm_fx_rewriting"


@dataclass
class Rewriting:
    """What `rewrite` leaves on a model.

    Attributes:
        recipe: The recipe.
        runtime: State and clock.
        cache: The rewritten structures.
        bindings: The rewritten blocks, by path, in the order of execution.
        kept: Blocks that the recipe keeps dense, by path.
        outer: The model's own graph with its blocks as leaves.
    """

    recipe: Recipe
    runtime: Runtime
    cache: ProgramCache
    bindings: dict[str, BlockBinding]
    kept: tuple[str, ...]
    outer: fx.Graph
    handles: list[RemovableHandle] = field(default_factory=list)

    def install(self, model: torch.nn.Module) -> None:
        """Put the rewriting in place; on any error the model is left as it was."""
        model.__dict__[ATTRIBUTE] = self
        installed: list[tuple[BlockBinding, torch.nn.Module]] = []
        try:
            for path, binding in self.bindings.items():
                block = model.get_submodule(path)
                binding.install(block)
                installed.append((binding, block))
            if hasattr(model, "cache_context"):
                model.__dict__["cache_context"] = types.MethodType(_named_context, model)
            self.handles.append(model.register_forward_pre_hook(_begin, with_kwargs=True, prepend=True))
            self.handles.append(model.register_forward_hook(_end, always_call=True))
        except BaseException:
            for binding, block in installed:
                binding.uninstall(block)
            self._leave(model)
            raise

    def uninstall(self, model: torch.nn.Module) -> None:
        """Give every block its own forward back; the clock goes on following its pipeline."""
        for path, binding in self.bindings.items():
            binding.uninstall(model.get_submodule(path))
        self._leave(model)

    def _leave(self, model: torch.nn.Module) -> None:
        for handle in self.handles:
            handle.remove()
        self.handles = []
        model.__dict__.pop("cache_context", None)
        del model.__dict__[ATTRIBUTE]

    def check_modules(self, model: torch.nn.Module) -> None:
        """Let every block forget programs that no longer fit its modules."""
        for path, binding in self.bindings.items():
            binding.check_modules(model.get_submodule(path))


def rewriting_of(model: torch.nn.Module) -> Rewriting | None:
    """The rewriting of a model, None when it has none."""
    return model.__dict__.get(ATTRIBUTE)


def _begin(model: torch.nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
    rewriting: Rewriting = model.__dict__[ATTRIBUTE]
    if rewriting.runtime.begin(args, kwargs):
        rewriting.check_modules(model)


def _end(model: torch.nn.Module, args: tuple[Any, ...], output: Any) -> None:
    model.__dict__[ATTRIBUTE].runtime.end()


@contextlib.contextmanager
def _named_context(self: torch.nn.Module, name: str, **kwargs: Any) -> Iterator[None]:
    """diffusers' `cache_context`, and a note of the name: it says which CFG branch the calls inside belong to."""
    runtime = self.__dict__[ATTRIBUTE].runtime
    runtime.context_name = name
    own: Any = type(self)
    try:
        with own.cache_context(self, name, **kwargs):
            yield
    finally:
        runtime.context_name = None
