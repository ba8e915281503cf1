"""Measures what the blocks of an unmodified model return, by hooks that are gone afterwards."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from sdtm_fx.analyze.layout import Block, Layout, find_layout, image_tokens
from sdtm_fx.analyze.measure import Measured, Settings, measure
from sdtm_fx.analyze.result import Analysis, assemble
from sdtm_fx.capture.arguments import Signature
from sdtm_fx.clock import Clock
from sdtm_fx.errors import SdtmFxError
from sdtm_fx.recipe.load import RecipeLike
from sdtm_fx.runtime.grid import GridReader

_TIMESTEPS = ("timestep", "timesteps", "t")


@dataclass(frozen=True)
class _Call:
    """One call of the model that is recorded."""

    generation: int
    step: int
    grid: tuple[int, int]
    guided: bool


class Recorder:
    """Collects measurements while a model runs. Made by `recording`.

    Attributes:
        layout: The model, its recipe and its blocks.
        clock: Says the step; of a bare model, set it with ``recorder.clock.manual(steps)``.
    """

    def __init__(
        self,
        layout: Layout,
        settings: Settings,
        on_step: Callable[[], None],
        check_grid: Callable[[tuple[int, int]], None],
    ) -> None:
        self.layout = layout
        self.clock = Clock()
        self._settings = settings
        self._on_step = on_step
        self._check_grid = check_grid
        self._grid = GridReader(layout.recipe.tokens)
        self._signature = Signature.of(type(layout.model).forward)
        self._call: _Call | None = None
        self._done: set[tuple[int, int]] = set()
        self._counts: dict[int, int] = {}
        self._shape: tuple[int, int] | None = None
        self._measured: dict[int, dict[tuple[int, str], tuple[Measured, ...]]] = {}

    def result(self) -> Analysis:
        """Everything that was measured so far, as arrays.

        Raises:
            SdtmFxError: Nothing was, generations differ in their number of steps, or one was cut short.
        """
        if self._shape is None:
            raise SdtmFxError("analyze: nothing was recorded; call the pipeline inside the `with` block")
        if len(set(self._counts.values())) > 1:
            raise SdtmFxError(
                f"analyze: generations of {sorted(set(self._counts.values()))} steps do not mix"
            )
        steps = next(iter(self._counts.values()))
        paths = tuple(block.path for block in self.layout.blocks)
        for generation, found in self._measured.items():
            for step in range(steps):
                missing = [path for path in paths if (step, path) not in found]
                if missing:
                    raise SdtmFxError(
                        f"analyze: generation {generation}, step {step} of {steps}: {', '.join(missing[:3])} "
                        f"did not run ({len(missing)} of {len(paths)} blocks); a generation must be whole"
                    )
        output, update = assemble(
            [[[found[s, path] for path in paths] for s in range(steps)] for found in self._measured.values()],
            self._shape,
        )
        model, recipe = type(self.layout.model).__name__, self.layout.recipe.name
        return Analysis(model, recipe, paths, self._shape, self._settings, output, update)

    def install(self, stack: contextlib.ExitStack) -> None:
        """Put the hooks in place; `stack` removes them."""
        model = self.layout.model
        handles = [
            model.register_forward_pre_hook(self._begin, with_kwargs=True),
            model.register_forward_hook(self._end, always_call=True),
        ]
        for block in self.layout.blocks:
            handles.append(block.module.register_forward_hook(self._hook(block), with_kwargs=True))
        for handle in handles:
            stack.callback(handle.remove)

    def _begin(self, model: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        arguments = self._signature.bind(args, kwargs)
        timestep = next((arguments[n] for n in _TIMESTEPS if arguments.get(n) is not None), None)
        moment = self.clock.moment(timestep)
        self._call = None
        if (moment.generation, moment.step) in self._done:
            return
        height, width = self._grid.read(arguments).grid
        grid = (height, width)
        if self._shape not in (None, grid):
            raise SdtmFxError(
                f"analyze: grids of {self._shape} and {grid} tokens do not mix; record them apart"
            )
        if self._shape is None:
            self._settings.check_grid(grid)
            self._check_grid(grid)
            self._shape = grid
        self._counts[moment.generation] = moment.count
        guided = bool(getattr(self.clock.pipeline, "do_classifier_free_guidance", False))
        self._call = _Call(moment.generation, moment.step, grid, guided)

    def _end(self, model: nn.Module, args: tuple[Any, ...], output: Any) -> None:
        if self._call is not None:
            self._done.add((self._call.generation, self._call.step))
            self._call = None
            self._on_step()

    def _hook(self, block: Block) -> Callable[..., None]:
        def record(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], output: Any) -> None:
            if self._call is not None:
                self._record(self._call, block, block.signature.bind(args, kwargs), output)

        return record

    def _record(self, call: _Call, block: Block, arguments: dict[str, Any], output: Any) -> None:
        outputs = output if isinstance(output, tuple | list) else (output,)
        after = image_tokens(block, outputs, arguments, call.grid)
        before = image_tokens(block, arguments.values(), arguments, call.grid)
        if before.shape != after.shape:
            raise SdtmFxError(
                f"analyze: block {block.path} takes image tokens {list(before.shape)} and returns "
                f"{list(after.shape)}; what it adds is defined for equal shapes only"
            )
        if call.guided and after.shape[0] % 2 == 0:
            before, after = before.chunk(2)[1], after.chunk(2)[1]  # diffusers stacks the negative half first
        maps = self._settings.maps and call.generation == next(iter(self._measured), call.generation)
        # In float32: the difference of two streams in half precision would lose more.
        features = (after.detach().float(), after.detach().float() - before.detach().float())
        pair = tuple(measure(f, call.grid, self._settings, maps=maps) for f in features)
        if not all(torch.isfinite(m.norms).all() for m in pair):
            raise SdtmFxError(
                f"analyze: block {block.path}, step {call.step}: its tokens are not finite, or their norm is not"
            )
        self._measured.setdefault(call.generation, {})[call.step, block.path] = pair


@contextlib.contextmanager
def recording(
    target: Any,
    recipe: RecipeLike | None = None,
    *,
    settings: Settings | None = None,
    on_step: Callable[[], None] = lambda: None,
    check_grid: Callable[[tuple[int, int]], None] = lambda grid: None,
) -> Iterator[Recorder]:
    """Measure the image tokens that the blocks of a model return, while it is used as always.

    Outputs are read and not changed: images are those without the recorder, bit for bit. Leaving the block,
    by an error too, takes all hooks away. Of each step the first model call counts, and in it the conditional
    half of the batch where guidance stacks two.

    Args:
        target: A diffusers pipeline, not rewritten, or its model (then say the step with `Recorder.clock`).
        recipe: Names the token layout; by default the shipped recipe that fits, see `layout.find_layout`.
        settings: What to measure.
        on_step: Called after each recorded step, for progress bars.
        check_grid: Called once with (height, width) in tokens, before anything is measured; may raise.

    Yields:
        The recorder; its `result()` may be asked for after the block too.

    Raises:
        SdtmFxError: No recipe fits, or the model is rewritten.
    """
    recorder = Recorder(find_layout(target, recipe), settings or Settings(), on_step, check_grid)
    with contextlib.ExitStack() as stack:
        if not isinstance(target, nn.Module):
            recorder.clock.follow(target)
            stack.callback(recorder.clock.unfollow)
        recorder.install(stack)
        yield recorder
