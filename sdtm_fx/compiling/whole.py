"""Compiling whole: the model's forward in one phase is one graph."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import torch

from sdtm_fx.capture.arguments import flatten
from sdtm_fx.capture.blocks import BlockCall, capture_outer
from sdtm_fx.compiling.features import FeatureLayout
from sdtm_fx.compiling.phases import PhaseKey, one_phase, own_code
from sdtm_fx.errors import CaptureError, HostReadError
from sdtm_fx.rewriting.rewriting import Rewriting


@dataclass
class WholeExecutor:
    """Runs the model's forward as the compiled function of the phase.

    Attributes:
        options: Arguments of ``torch.compile``.
        layout: Makes the tensors of features.
        copies: Whether outputs are copied, because the next call writes over them (CUDA graphs).
        functions: The compiled functions.
    """

    options: Mapping[str, Any]
    layout: FeatureLayout
    copies: bool
    functions: dict[PhaseKey, Callable[..., Any]] = field(default_factory=dict)
    calls: dict[Any, tuple[BlockCall, ...]] = field(default_factory=dict)

    def __deepcopy__(self, memo: dict[int, Any]) -> None:
        """A copy of a compiled model is not compiled."""

    def run(
        self,
        rewriting: Rewriting,
        model: torch.nn.Module,
        own: Callable[..., Any],
        args: tuple[Any, ...],
        kwargs: dict[str, Any],
    ) -> Any:
        """Run the model; see `sdtm_fx.rewriting.rewriting.ModelExecutor`."""
        call = rewriting.runtime.call
        assert call is not None
        if call.variant is not None:
            self.prepare(rewriting, model, args, kwargs)
        key = PhaseKey.of(call)
        if key not in self.functions:
            copy = own_code(
                one_phase, f"{type(model).__name__}_{key.label(rewriting.recipe)}_{len(self.functions)}"
            )
            self.functions[key] = torch.compile(copy, **self.options)
        output = self.functions[key](own, rewriting.runtime, args, kwargs)
        if self.copies:
            return torch.utils._pytree.tree_map_only(torch.Tensor, torch.clone, output)
        return output

    def prepare(
        self, rewriting: Rewriting, model: torch.nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> None:
        """Rewrite blocks for structures of call that are new, and lay out the features that the call stores.

        Neither can be done while the whole model is traced.
        """
        call = rewriting.runtime.call
        assert call is not None
        arguments = rewriting.runtime.signature.bind(args, kwargs)
        for seen in self._block_calls(rewriting, model, arguments):
            binding = rewriting.bindings[seen.path]
            block = model.get_submodule(seen.path)
            program = binding.programs.get(seen.key) or binding.learn(block, seen.key, seen.leaves)
            variant = call.gated.get(seen.path, call.variant)
            if variant is not None:
                binding.cache.gated(program, block, variant)
            self.layout.lay_out(replace(call, variant=variant), binding.index, block, program, seen.leaves)

    def _block_calls(
        self, rewriting: Rewriting, model: torch.nn.Module, arguments: dict[str, Any]
    ) -> tuple[BlockCall, ...]:
        """How the model calls its rewritten blocks for such arguments."""
        structure, leaves = flatten(arguments)
        key = (structure, tuple(_size(leaf) for leaf in leaves))
        if key not in self.calls:
            fakes = lambda: torch.utils._pytree.tree_map_only(torch.Tensor, torch.empty_like, arguments)  # noqa: E731
            try:
                self.calls[key] = capture_outer(model, rewriting.bindings, fakes).calls
            except HostReadError as error:
                raise CaptureError(
                    f"{type(model).__name__}.forward reads a value of a tensor on the host, so it does not compile as "
                    "a whole, rewritten or not; accepted: sdtm_fx.compile(target, regional=True)"
                ) from error
        return self.calls[key]


def _size(leaf: Any) -> Any:
    return (leaf.shape, leaf.dtype, leaf.device) if isinstance(leaf, torch.Tensor) else leaf
