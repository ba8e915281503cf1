"""How good recipes are: images drawn under them beside dense ones, by one process or several that stay."""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ProcessPoolExecutor
from dataclasses import dataclass
from multiprocessing import get_context
from typing import Any, Literal, TypeAlias

import torch

from sdtm_fx.evaluate.drawing import draw, threads
from sdtm_fx.evaluate.fidelity import psnr, ssim
from sdtm_fx.evaluate.identity import identity
from sdtm_fx.evaluate.models import ModelSource
from sdtm_fx.evaluate.row import Row
from sdtm_fx.evaluate.sampling import Sampling
from sdtm_fx.evaluate.store import Store
from sdtm_fx.idle_stages import untold
from sdtm_fx.recipe.schema import Recipe

Quality: TypeAlias = Literal["psnr", "ssim"]
"""What is searched for: PSNR in dB, or SSIM, to the dense image of the same prompt and seed."""

Measure: TypeAlias = Callable[[Recipe, range], tuple[float, ...]]
"""The quality of a recipe on some images, by their numbers."""

_MEASURES = {"psnr": psnr, "ssim": ssim}


@dataclass(frozen=True)
class Ruler:
    """What is drawn to measure a recipe.

    Attributes:
        source: The model.
        sampling: All images there are to measure with.
        quality: What is measured.
        threads: CPU threads of each process.
    """

    source: ModelSource
    sampling: Sampling
    quality: Quality = "psnr"
    threads: int = 1


class Workshop:
    """A dense pipeline, the dense images that were drawn with it, and recipes tried on it one after another.

    Args:
        ruler: What to draw.
        pipeline: The dense pipeline; None loads it.
    """

    def __init__(self, ruler: Ruler, pipeline: Any = None) -> None:
        self._ruler = ruler
        self._pipeline = ruler.source.load() if pipeline is None else pipeline
        with threads(ruler.threads):
            self._identity = identity(self._pipeline)
        self._dense = Store(self._identity)

    def quality(self, recipe: Recipe, images: range) -> tuple[float, ...]:
        """The quality of a recipe, image by image; nothing else is drawn, in batches that begin with the first.

        Raises:
            SdtmFxError: What drawing raises.
        """
        part = _part(self._ruler.sampling, images)
        row, store = Row(recipe.name, "tried", recipe), Store(self._identity)
        with threads(self._ruler.threads), untold():
            draw(self._pipeline, [], part, self._dense)
            for batch in part.batches:
                key = store.key(None, part, batch)
                store.put(key, self._dense.get(key))
            draw(self._pipeline, [row], part, store)
            found: list[float] = []
            for batch in part.batches:
                drawn, dense = (store.get(store.key(which, part, batch)) for which in (row, None))
                found += _MEASURES[self._ruler.quality](drawn.images, dense.images)
        return tuple(found)


def _part(sampling: Sampling, images: range) -> Sampling:
    """The sampling of some of the images alone."""
    seeds, prompts = sampling.seeds[images.start : images.stop], sampling.prompts[images.start : images.stop]
    return dataclasses.replace(sampling, seeds=seeds, prompts=prompts, paired=len(seeds), judged=0)


@contextlib.contextmanager
def measuring(
    ruler: Ruler, processes: int, pipeline: Any = None
) -> Iterator[Callable[[Sequence[Recipe], range], list[tuple[float, ...]]]]:
    """Open a workshop, or several, and measure several recipes at a time.

    Args:
        ruler: What to draw.
        processes: How many; results do not depend on it. One works in this process.
        pipeline: Taken by one process alone; None loads it.
    """
    if processes == 1:
        workshop = Workshop(ruler, pipeline)
        yield lambda recipes, images: [workshop.quality(recipe, images) for recipe in recipes]
        return
    context = get_context("spawn")
    with ProcessPoolExecutor(processes, context, _open, (ruler,)) as pool:

        def measure(recipes: Sequence[Recipe], images: range) -> list[tuple[float, ...]]:
            waiting: list[Future[tuple[float, ...]]] = [
                pool.submit(_measure, recipe, images) for recipe in recipes
            ]
            return [future.result() for future in waiting]

        yield measure


_open_workshop: Workshop | None = None


def _open(ruler: Ruler) -> None:
    """Start of a process of the pool; its workshop stays for as long as it lives."""
    global _open_workshop
    torch.set_num_threads(ruler.threads)
    _open_workshop = Workshop(ruler)


def _measure(recipe: Recipe, images: range) -> tuple[float, ...]:
    assert _open_workshop is not None, "the pool opens it"
    return _open_workshop.quality(recipe, images)
