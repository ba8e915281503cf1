"""A row that is not ours: diffusers' TaylorSeer cache on the dense pipeline, as a check of `skip`."""

from __future__ import annotations

import contextlib
import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Annotated, Any, Literal

import torch
from diffusers.hooks import HookRegistry, TaylorSeerCacheConfig, apply_taylorseer_cache
from diffusers.models.cache_utils import CacheMixin
from pydantic import Field

from sdtm_fx.cost.cost import Cost
from sdtm_fx.cost.counter import MacCounter, Macs
from sdtm_fx.errors import NothingMatched
from sdtm_fx.evaluate.match import check_reach
from sdtm_fx.evaluate.row import Row
from sdtm_fx.recipe.part import Part, Positive, Text

_HOOK = "taylorseer_cache"  # diffusers' name of it
_CONTEXT = "sdtm_fx"  # one state for all calls of the denoiser: both guidance halves are one batch


class TaylorSeer(Part):
    """TaylorSeer (Liu et al. 2025) as `diffusers.hooks` has it.

    After the leading steps, one step is computed, then all between multiples of the interval are forecast. Each
    hooked module forecasts its own output, as `skip` does, but in the pattern and with the differences of
    diffusers.
    """

    name: Literal["taylorseer"]
    """Which hook."""
    interval: Annotated[int, Field(ge=2)] = 2
    """Distance of computed steps."""
    first_steps: Positive = 2
    """Leading steps that are computed; at least one more than the order makes sense."""
    last_steps: Annotated[int, Field(ge=0)] = 1
    """Trailing steps that are computed."""
    order: Annotated[int, Field(ge=0, le=4)] = 1
    """Highest order of the series."""
    modules: tuple[Text, ...] = (r"(single_)?transformer_blocks\.\d+\.(attn|ff)",)
    """Regular expressions for the paths of the modules that forecast."""

    def fingerprint(self) -> str:
        """Text that is equal for equal hooks."""
        return self.model_dump_json()

    def computed(self, steps: int) -> tuple[bool, ...]:
        """Say of every step whether it is computed, by the rule of diffusers."""
        first, last = self.first_steps, steps - self.last_steps
        return tuple(t < first or t >= last or (t - first - 1) % self.interval == 0 for t in range(steps))

    @contextlib.contextmanager
    def applied(self, pipeline: Any, steps: int) -> Iterator[None]:
        """Apply the hook for the length of a ``with`` block; the pipeline is left as it was.

        `SD3Transformer2DModel` is no `CacheMixin`, so neither the pipeline nor the model tells the hook where a
        generation starts; a timestep that is larger than the one before does it here.

        Args:
            pipeline: A dense pipeline.
            steps: Denoising steps of its generations.

        Raises:
            NothingMatched: No module has a path that `modules` matches.
        """
        model = denoiser(pipeline)
        hooked_modules(model, self)
        before = {id(module): set(module.__dict__) for module in model.modules()}
        config = TaylorSeerCacheConfig(
            cache_interval=self.interval,
            disable_cache_before_step=self.first_steps,
            disable_cache_after_step=steps - self.last_steps,
            max_order=self.order,
            taylor_factors_dtype=torch.float32,
            cache_identifiers=list(self.modules),
        )
        with contextlib.ExitStack() as stack:
            stack.callback(_remove, model, before)
            apply_taylorseer_cache(model, config)
            generation = _Generation(model, stack.enter_context(contextlib.ExitStack()))
            handle = model.register_forward_pre_hook(generation.note, with_kwargs=True)
            stack.callback(handle.remove)
            yield


@dataclass
class _Generation:
    """Forgets what the hooks hold when a new generation starts."""

    model: torch.nn.Module
    context: contextlib.ExitStack
    last: float | None = None

    def note(self, module: torch.nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        now = float(kwargs["timestep"].max())
        if self.last is None or now > self.last:
            self.context.close()
            HookRegistry.check_if_exists_or_initialize(self.model).reset_stateful_hooks()
            self.context.enter_context(CacheMixin.cache_context(self.model, _CONTEXT))
        self.last = now


def _remove(model: torch.nn.Module, before: dict[int, set[str]]) -> None:
    """Remove the hooks, and the attributes that diffusers leaves behind."""
    HookRegistry.check_if_exists_or_initialize(model).remove_hook(_HOOK, recurse=True)
    for module in model.modules():
        for name in {"forward", "_diffusers_hook"} & (set(module.__dict__) - before[id(module)]):
            del module.__dict__[name]


def denoiser(pipeline: Any) -> torch.nn.Module:
    """The model of a pipeline that its blocks are in."""
    model: torch.nn.Module = pipeline.transformer
    return model


def hooked_modules(model: torch.nn.Module, hook: TaylorSeer) -> dict[str, torch.nn.Module]:
    """The modules that forecast, by path.

    Raises:
        NothingMatched: There are none.
    """
    found = {
        path: module
        for path, module in model.named_modules()
        if any(re.fullmatch(pattern, path) for pattern in hook.modules)
    }
    if not found:
        raise NothingMatched(
            f"hook taylorseer: {', '.join(hook.modules)} matches no module of {type(model).__name__}; accepted "
            "regular expressions for whole module paths, such as transformer_blocks\\.\\d+\\.attn"
        )
    return found


@dataclass(frozen=True)
class HookedRow(Row):
    """A row whose pipeline stays dense and is hooked instead.

    Attributes:
        hook: The hook.
    """

    hook: TaylorSeer | None = None


@dataclass
class CountedCalls:
    """Counts what the calls of a denoiser really compute, hooks and all.

    Attributes:
        pipeline: The pipeline.
        macs: Of every call so far, in order.
    """

    pipeline: Any
    macs: list[Macs] = field(default_factory=list)

    @contextlib.contextmanager
    def counting(self) -> Iterator[CountedCalls]:
        """Count while the block lasts."""
        model, start = denoiser(self.pipeline), Macs()
        with MacCounter() as counter:

            def enter(*_: Any) -> None:
                nonlocal start
                start = counter.macs

            def leave(*_: Any) -> None:
                self.macs.append(counter.macs - start)

            handles = [model.register_forward_pre_hook(enter), model.register_forward_hook(leave)]
            try:
                yield self
            finally:
                for handle in handles:
                    handle.remove()

    def cost(self, images: int) -> Cost:
        """The cost per image, against as many calls like the most expensive one, which is a dense one.

        Args:
            images: How many images the calls drew.
        """
        total = sum(self.macs, Macs())
        dense = max(self.macs, key=lambda macs: macs.total) * len(self.macs)
        return Cost(total * (1 / images), dense * (1 / images))


def match_hook(
    hook: TaylorSeer, pipeline: Any, *, speedup: float, steps: int, height: int, width: int
) -> tuple[TaylorSeer, float]:
    """Set interval and leading steps so that a whole generation costs what it should.

    The smallest interval that saves enough is taken; leading steps are added until no more is saved than wanted.

    Args:
        hook: Everything but interval and leading steps stays; its leading steps are the fewest.
        pipeline: A dense pipeline.
        speedup: Dense over total MACs that is wanted.
        steps: Denoising steps.
        height: Pixels.
        width: Pixels.

    Returns:
        The hook, and the speedup by total MACs that it reaches.

    Raises:
        BudgetError: The budget is out of reach.
    """
    share = forecast_share(hook, pipeline, height=height, width=width)

    def reached(candidate: TaylorSeer) -> float:
        return 1 / (1 - share * candidate.computed(steps).count(False) / steps)

    tried: list[tuple[float, TaylorSeer]] = []
    for interval in range(2, max(steps, 3)):
        for first in range(hook.first_steps, steps):
            candidate = hook.model_copy(update={"interval": interval, "first_steps": first})
            if (found := reached(candidate)) > 1:
                tried.append((found, candidate))
        if tried and max(found for found, _ in tried) >= speedup:
            break
    check_reach("hook taylorseer", [found for found, _ in tried], speedup, f"at {steps} steps")
    found, best = min(tried, key=lambda one: (abs(one[0] - speedup), one[1].interval, one[1].first_steps))
    return best, found


def forecast_share(hook: TaylorSeer, pipeline: Any, *, height: int, width: int) -> float:
    """Share of a dense call's total MACs that runs inside the hooked modules, from one denoising step."""
    model = denoiser(pipeline)
    modules = hooked_modules(model, hook)
    with MacCounter() as counter, counter.watching({"": model, **modules}), torch.no_grad():
        pipeline(
            prompt=[""], height=height, width=width, num_inference_steps=1, output_type="latent",
            generator=torch.Generator().manual_seed(0),
        )  # fmt: skip
    inside = sum((counter.inside[path] for path in modules), Macs())
    return inside.total / counter.inside[""].total
