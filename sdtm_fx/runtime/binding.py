"""A rewritten block: which function runs in its place, for this call and this phase."""

from __future__ import annotations

import functools
import types
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Any, Protocol

import torch

from sdtm_fx.capture.arguments import Key, Leaf, Signature, flatten, leaf_names
from sdtm_fx.capture.guards import GuardFailed
from sdtm_fx.capture.hooked import clear_inner_forward, set_inner_forward, traits
from sdtm_fx.rewriting.programs import Program, ProgramCache
from sdtm_fx.rewriting.serving import dense_variant
from sdtm_fx.rewriting.spans import Spans, forecast_span
from sdtm_fx.rewriting.work import SitePlace
from sdtm_fx.runtime.call import BlockContext, Call, OpenSpan, Variant
from sdtm_fx.runtime.runtime import Runtime

ATTRIBUTE = "_sdtm_fx"


class Executor(Protocol):
    """Runs rewritten blocks in its own way."""

    def run(
        self, binding: BlockBinding, block: torch.nn.Module, program: Program, call: Call, leaves: list[Leaf]
    ) -> Any:
        """Run a block for a call, in the variant that the call names; None, or one that is missing, is dense."""


@dataclass
class BlockBinding:
    """Ties one block to the runtime.

    Attributes:
        runtime: Says which phase it is.
        cache: Rewrites structures of calls that have not been seen yet.
        path: Module path of the block.
        index: Its place in the order of execution.
        signature: Parameters of its forward.
        places: The sites of the recipe in it.
        spans: What it is in the spans of the recipe.
        programs: Rewritten programs by structure of call.
        fingerprint: What the programs assume about the block's modules.
        former: The inner forward that was replaced, if one was set on the instance.
        own: The forward of the block's class.
        executor: What runs the block's functions where they are compiled one by one; None runs them as they are.
    """

    runtime: Runtime
    cache: ProgramCache
    path: str
    index: int
    signature: Signature
    places: tuple[SitePlace, ...]
    spans: Spans = ()
    programs: dict[Key, Program] = field(default_factory=dict)
    fingerprint: tuple[Any, ...] = ()
    former: Callable[..., Any] | None = None
    own: Callable[..., Any] | None = None
    executor: Executor | None = None

    def run(self, block: torch.nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """Run the block's function for the current phase, or its own forward where nothing is rewritten."""
        call = self.runtime.call
        if call is None or (call.variant is None and self.executor is None):
            return self._own(block, args, kwargs)
        key, leaves = flatten(self.signature.bind(args, kwargs))
        program = self.programs.get(key)
        if program is None:
            program = self.learn(block, key, leaves)
        variant = None if call.variant is None else self._variant(call, program)
        function = None if variant is None else self._function(block, program, variant)
        if self.executor is not None and self.former is None:
            own = replace(call, variant=variant, gated={}, gated_stores={})
            return self.executor.run(self, block, program, own, leaves)
        if variant is None or function is None:
            return self._own(block, args, kwargs)
        context = BlockContext(call, self.index, self.runtime.planned, spans=self.runtime.spans)
        for watch in self.runtime.watchers:
            watch(context, variant)
        try:
            return function(block, context, *leaves)
        except GuardFailed:
            function = self._function(block, self.learn(block, key, leaves), variant)
            assert function is not None
            return function(block, context, *leaves)

    def check_modules(self, block: torch.nn.Module) -> None:
        """Forget programs whose assumptions no longer hold (a LoRA was loaded, a processor was swapped)."""
        now = fingerprint(block)
        if now != self.fingerprint:
            self.programs.clear()
            self.fingerprint = now

    def install(self, block: torch.nn.Module) -> None:
        """Make the block run this binding."""
        self.fingerprint = fingerprint(block)
        self.own = type(block).forward
        block.__dict__[ATTRIBUTE] = self
        forward = types.MethodType(_rewritten_forward(type(block).forward), block)
        self.former = set_inner_forward(block, forward)

    def uninstall(self, block: torch.nn.Module) -> None:
        """Give the block its own forward back."""
        clear_inner_forward(block, self.former)
        del block.__dict__[ATTRIBUTE]

    def _variant(self, call: Call, program: Program) -> Variant:
        """The variant of the call, or a refresh where the block has no features yet.

        The model may leave a block out on the step that stores them: caches, `skip_layers`.
        """
        assert call.variant is not None
        variant = call.gated.get(self.path, call.variant)
        if variant.stage is None or torch.compiler.is_compiling():
            return variant  # a phase that is compiled whole has all its features, or is not run
        held, span = call.state.features, forecast_span(self.cache.recipe, self.spans, variant)
        read = {(self.index, name) for name in program.features.get(variant, ())}
        if span is not None:  # its blocks are forecast all, or none
            read.add((span.exit, self.cache.recipe.spans[span.span_index].id))
        if read <= held.keys():
            return variant
        return call.gated_stores.get(self.path) or dense_variant(self.cache.recipe, variant.stage)

    def _function(
        self, block: torch.nn.Module, program: Program, variant: Variant
    ) -> Callable[..., Any] | None:
        """The function of a variant; where the cost gate leaves sites out, it is made when first asked for."""
        if variant.left_out and not torch.compiler.is_compiling():
            self.cache.gated(program, block, variant)
        return program.functions.get(variant.key)

    def _own(self, block: torch.nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        if self.former is not None:
            return self.former(*args, **kwargs)
        assert self.own is not None
        return self.own(block, *args, **kwargs)

    def learn(self, block: torch.nn.Module, key: Key, leaves: list[Leaf]) -> Program:
        """Rewrite the block for a structure of call that has not been seen yet."""
        program = self.cache.program(block, key, self._dense(key, leaves), self.places, self.spans)
        self.programs[key] = program
        return program

    def _dense(self, key: Key, leaves: list[Leaf]) -> list[Leaf]:
        """The arguments at full length: inside a span a block is called with merged tokens, and traced without."""
        for place in self.spans:
            span = self.cache.recipe.spans[place.span_index]
            opened = self.runtime.spans.get(span.id)
            if isinstance(opened, OpenSpan) and not place.first:
                names = leaf_names(key)
                return [
                    _stretched(leaf, opened)
                    if name == span.input and isinstance(leaf, torch.Tensor)
                    else leaf
                    for name, leaf in zip(names, leaves, strict=True)
                ]
        return leaves


def _stretched(tokens: torch.Tensor, span: OpenSpan) -> torch.Tensor:
    return tokens.new_empty(tokens.shape[0], span.plan.tokens, tokens.shape[2])


@functools.cache
def _rewritten_forward(own: Callable[..., Any]) -> Callable[..., Any]:
    """One forward per block class, with the signature of the class's own."""

    @functools.wraps(own)
    def forward(self: torch.nn.Module, *args: Any, **kwargs: Any) -> Any:
        return self.__dict__[ATTRIBUTE].run(self, args, kwargs)

    return forward


def fingerprint(block: torch.nn.Module) -> tuple[Any, ...]:
    """What a program assumes about a block: what its modules are, and their plain settings."""
    return tuple(
        (name, traits(m), _settings(m.__dict__.get("processor")), m.__dict__.get("_chunk_size"))
        for name, m in block.named_modules()
        if name
    )


def _settings(processor: object) -> tuple[Any, ...]:
    """The type of an attention processor, and those of its attributes that are plain values (its backend)."""
    plain = (str, int, float, type(None))
    values = ((k, v) for k, v in getattr(processor, "__dict__", {}).items() if isinstance(v, plain))
    return (type(processor), *sorted(values))
