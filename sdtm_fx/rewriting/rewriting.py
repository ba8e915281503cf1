"""A rewriting: one model, one recipe, and what was put in place of its blocks."""

from __future__ import annotations

import contextlib
import functools
import importlib
import types
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, Protocol

import torch
from torch import fx
from torch.utils.hooks import RemovableHandle

from sdtm_fx.capture.hooked import Forward, clear_inner_forward, set_inner_forward
from sdtm_fx.compiling.phases import PhaseKey, host_only, one_phase, own_code
from sdtm_fx.errors import RewriteError
from sdtm_fx.recipe.schema import Recipe
from sdtm_fx.rewriting.programs import ProgramCache
from sdtm_fx.rewriting.span_blame import blame_span
from sdtm_fx.runtime.binding import BlockBinding, Executor
from sdtm_fx.runtime.call import Call
from sdtm_fx.runtime.runtime import Runtime
from sdtm_fx.runtime.schedules import Schedules

ATTRIBUTE = "_sdtm_fx_rewriting"

_REASON = "the phase of a rewritten model is found on the host; sdtm_fx.compile(model) compiles each phase as one graph"


class ModelExecutor(Protocol):
    """Runs the forward of a rewritten model in its own way."""

    def run(
        self,
        rewriting: Rewriting,
        model: torch.nn.Module,
        own: Callable[..., Any],
        args: tuple[Any, ...],
        kwargs: dict[str, Any],
    ) -> Any:
        """Run `own`, the forward of `model`, in the phase that the runtime has found."""


@dataclass
class Rewriting:
    """What `rewrite` leaves on a model.

    Attributes:
        recipe: The recipe.
        runtime: State and clock.
        schedules: Which phase each step runs, and what it costs; the runtime asks them.
        cache: The rewritten structures.
        bindings: The rewritten blocks, by path, in the order of execution.
        kept: Blocks that the recipe keeps dense, by path.
        outer: The model's own graph with its blocks as leaves.
        executor: What runs the model's forward where it is compiled; None runs it as it is.
        phases: The model's forward in each phase, for those who compile it from outside.
        others: Compiled forwards of blocks that are not rewritten, by path.
    """

    recipe: Recipe
    runtime: Runtime
    schedules: Schedules
    cache: ProgramCache
    bindings: dict[str, BlockBinding]
    kept: tuple[str, ...]
    outer: fx.Graph
    handles: list[RemovableHandle] = field(default_factory=list)
    former: Forward | None = None
    executor: ModelExecutor | None = None
    phases: dict[PhaseKey, Callable[..., Any]] = field(default_factory=dict)
    others: dict[str, Forward] = field(default_factory=dict)
    formers: dict[str, Forward | None] = field(default_factory=dict)

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
            # The clock is read on the host: what compiles the model by itself has to leave these out.
            host_only(Rewriting.run, _REASON)
            begin, end = (torch.compiler.disable(hook, reason=_REASON) for hook in (_begin, _end))
            self.handles.append(model.register_forward_pre_hook(begin, with_kwargs=True, prepend=True))
            self.handles.append(model.register_forward_hook(end, always_call=True))
            for name, method in (
                ("compile", _compile),
                ("compile_repeated_blocks", _compile_repeated_blocks),
            ):
                if hasattr(model, name):
                    model.__dict__[name] = types.MethodType(method, model)
            self._install_others(model)
            phased = types.MethodType(_phased_forward(type(model).forward), model)
            self.former = set_inner_forward(model, phased)
        except BaseException:
            for binding, block in installed:
                binding.uninstall(block)
            self._leave(model)
            raise

    def uninstall(self, model: torch.nn.Module) -> None:
        """Give every block its own forward back; the clock goes on following its pipeline."""
        clear_inner_forward(model, self.former)
        self.former = None
        for path, binding in self.bindings.items():
            binding.uninstall(model.get_submodule(path))
        self._leave(model)

    def compile_by(
        self,
        model: torch.nn.Module,
        *,
        whole: ModelExecutor | None = None,
        blocks: Executor | None = None,
        others: Mapping[str, Forward] | None = None,
        cuda_graphs: bool = False,
    ) -> None:
        """Let compiled code run the model; without arguments, take that back.

        Args:
            model: The rewritten model.
            whole: Runs its forward.
            blocks: Runs its rewritten blocks.
            others: Forwards of its other blocks, as unbound functions by path.
            cuda_graphs: Whether calls are marked for CUDA graphs.

        Raises:
            RewriteError: If someone records plans, which compiled code keeps to itself.
        """
        if self.runtime.watchers and (whole is not None or blocks is not None):
            raise RewriteError(
                f"{type(model).__name__} cannot be compiled inside record_plans; leave the block first"
            )
        self._uninstall_others(model)
        self.executor, self.others = whole, dict(others or {})
        for binding in self.bindings.values():
            binding.executor = blocks
        self.runtime.static = whole is not None or blocks is not None
        self.runtime.marks_steps = cuda_graphs
        self.runtime.state.clear()
        self._install_others(model)

    @property
    def is_compiled(self) -> bool:
        """Whether compiled code runs the model or its blocks."""
        return self.runtime.static

    def compiled_by(self) -> dict[str, Any]:
        """The arguments of the last `compile_by`."""
        blocks = next(iter(self.bindings.values())).executor
        return {
            "whole": self.executor,
            "blocks": blocks,
            "others": dict(self.others),
            "cuda_graphs": self.runtime.marks_steps,
        }

    def _install_others(self, model: torch.nn.Module) -> None:
        for path, forward in self.others.items():
            block = model.get_submodule(path)
            self.formers[path] = set_inner_forward(block, types.MethodType(forward, block))

    def _uninstall_others(self, model: torch.nn.Module) -> None:
        for path, former in self.formers.items():
            clear_inner_forward(model.get_submodule(path), former)
        self.formers = {}

    def _leave(self, model: torch.nn.Module) -> None:
        self._uninstall_others(model)
        for handle in self.handles:
            handle.remove()
        self.handles = []
        for name in ("cache_context", "compile", "compile_repeated_blocks"):
            model.__dict__.pop(name, None)
        del model.__dict__[ATTRIBUTE]

    def run(self, model: torch.nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """Run the model's forward; its hooks have found the phase already."""
        own, call = self.former or types.MethodType(type(model).forward, model), self.runtime.call
        if call is None:
            return own(*args, **kwargs)
        try:
            return self._run(call, model, own, args, kwargs)
        except RuntimeError as error:
            blame_span(self.recipe, self.runtime, model, call, error, compiled=self.executor is not None)
            raise

    def _run(
        self,
        call: Call,
        model: torch.nn.Module,
        own: Callable[..., Any],
        args: tuple[Any, ...],
        kwargs: dict[str, Any],
    ) -> Any:
        if self.executor is not None:
            return self.executor.run(self, model, own, args, kwargs)
        # Each phase has a code object of its own, for a compiler that comes in from outside.
        key = PhaseKey.of(call)
        if key not in self.phases:
            self.phases[key] = own_code(one_phase, f"{type(model).__name__}_{key.label(self.recipe)}")
        return self.phases[key](own, self.runtime, args, kwargs)

    def check_modules(self, model: torch.nn.Module) -> None:
        """Let every block forget programs that no longer fit its modules."""
        for path, binding in self.bindings.items():
            binding.check_modules(model.get_submodule(path))


@functools.cache
def _phased_forward(own: Callable[..., Any]) -> Callable[..., Any]:
    """One forward per model class, with the signature of the class's own."""

    @functools.wraps(own)
    def forward(self: torch.nn.Module, *args: Any, **kwargs: Any) -> Any:
        return self.__dict__[ATTRIBUTE].run(self, args, kwargs)

    return host_only(forward, _REASON)


def rewriting_of(model: torch.nn.Module) -> Rewriting | None:
    """The rewriting of a model, None when it has none."""
    return model.__dict__.get(ATTRIBUTE)


def _compile(self: torch.nn.Module, **options: Any) -> None:
    """``Module.compile`` of a rewritten model: each phase as a whole."""
    _compiler().compile(self, regional=False, **{"fullgraph": False, **options})


def _compile_repeated_blocks(self: torch.nn.Module, **options: Any) -> None:
    """diffusers' `compile_repeated_blocks` of a rewritten model: each phase block by block."""
    _compiler().compile(self, regional=True, **{"fullgraph": False, **options})


def _compiler() -> Any:
    return importlib.import_module("sdtm_fx.compiling.compile")  # it compiles rewritings, and knows them


def _begin(model: torch.nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
    rewriting: Rewriting = model.__dict__[ATTRIBUTE]
    if rewriting.runtime.begin(args, kwargs):
        rewriting.check_modules(model)


def _end(model: torch.nn.Module, args: tuple[Any, ...], output: Any) -> None:
    model.__dict__[ATTRIBUTE].runtime.end(output)


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
