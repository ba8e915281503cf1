"""Phases as compiled code: what is fixed inside one graph, and a code object of its own for each."""

from __future__ import annotations

import re
import types
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch

from sdtm_fx.grids import TokenGrid, show_grid, tokens_on
from sdtm_fx.recipe.schema import Recipe
from sdtm_fx.runtime.call import Call, Variant


@dataclass(frozen=True)
class PhaseKey:
    """What is fixed inside one compiled phase.

    Attributes:
        variant: The graphs of the blocks; None where they run their own forward.
        remove: Tokens removed at every site.
        fresh_plan: Whether plans are made, or taken from an earlier step.
        grid: Sides of the grid of the tokens that may be merged.
        halves: CFG halves in the batch that share one plan.
        advance_ages: Whether ages count this call: the first of its step.
        gated: Paths and variants of the blocks in which the cost gate leaves sites out.
        fresh_destinations: Whether the destinations of plans that are made are chosen, or those of an earlier step.
        references: Tokens of reference images.
    """

    variant: Variant | None
    remove: int
    fresh_plan: bool
    grid: TokenGrid
    halves: int
    advance_ages: bool
    gated: frozenset[tuple[str, Variant]] = frozenset()
    fresh_destinations: bool = True
    references: int = 0

    @staticmethod
    def of(call: Call) -> PhaseKey:
        """The phase of a call; what dense steps do not read is the same for all of them."""
        merges = call.variant is not None and call.variant.stage is not None
        plans = merges or (call.variant is not None and call.variant.measure is not None)
        return PhaseKey(
            variant=call.variant,
            remove=call.phase.remove,
            fresh_plan=call.phase.fresh_plan,
            grid=call.grid,
            halves=call.halves if plans else 1,
            advance_ages=call.advance_ages if merges else True,
            gated=frozenset(call.gated.items()),
            fresh_destinations=call.phase.fresh_destinations,
            references=call.references,
        )

    def label(self, recipe: Recipe) -> str:
        """A name for profiles and packages: ``structure_3072_of_4096``."""
        name, more = "dense", ""
        if self.variant is not None and self.variant.stage is not None:
            name = recipe.stages[self.variant.stage].name
            more = "" if self.fresh_plan else "_plan_kept"
            more += "" if self.fresh_destinations else "_destinations_kept"
            more += "" if self.advance_ages else "_again"
            more += "" if self.halves == 1 else f"_{self.halves}_halves"
        elif self.variant is not None:
            name = "dense"
            more += (
                "" if self.variant.refresh is None else f"_stores_{recipe.stages[self.variant.refresh].name}"
            )
            more += (
                "" if self.variant.measure is None else f"_counts_{recipe.stages[self.variant.measure].name}"
            )
        kept = f"_{tokens_on(self.grid) - self.remove}_of" if self.remove else ""
        return re.sub(r"\W", "_", f"{name}{kept}_{show_grid(self.grid)}{more}")


def own_code(function: Callable[..., Any], name: str) -> Callable[..., Any]:
    """Copy a function with a code object of its own, which is what torch.compile keeps graphs and limits by.

    Args:
        function: A plain function.
        name: Of the copy, in profiles and messages of the compiler.
    """
    code = function.__code__.replace(co_name=name)
    copy = types.FunctionType(code, function.__globals__, name, function.__defaults__, function.__closure__)
    copy.__kwdefaults__ = function.__kwdefaults__
    copy.__qualname__ = name
    copy.__module__ = function.__module__
    return copy


def host_only(function: Callable[..., Any], reason: str) -> Callable[..., Any]:
    """Keep a compiler that comes in from outside away from a function; what the function calls may be compiled.

    Args:
        function: The function; marked in place.
        reason: What the compiler says where it may not leave anything out.
    """
    torch._dynamo.decorators.skip(function)
    function._torchdynamo_disable_msg = reason  # type: ignore[attr-defined]
    return function


def one_phase(own: Callable[..., Any], runtime: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    """Run the forward of a model in the phase that its runtime has found.

    Args:
        own: The forward.
        runtime: The `Runtime`, whose plans of this call are no output of the graph.
        args: Arguments of the forward.
        kwargs: More of them.
    """
    output = own(*args, **kwargs)
    runtime.close()
    return output
