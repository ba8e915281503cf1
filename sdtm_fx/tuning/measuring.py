"""How good recipes are: images drawn under them beside dense ones, by one process or several that stay."""

from __future__ import annotations

import contextlib
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
        """The quality of a recipe, image by image; whole batches are drawn.

        Raises:
            SdtmFxError: What drawing raises.
        """
        ruler, sampling = self._ruler, self._ruler.sampling
        batches = [b for b in sampling.batches if b.start < images.stop and b.stop > images.start]
        row, store = Row(recipe.name, "tried", recipe), Store(self._identity)
        with threads(ruler.threads):
            draw(self._pipeline, [], sampling, self._dense, batches=batches)
            for batch in batches:
                key = store.key(None, sampling, batch)
                store.put(key, self._dense.get(key))
            draw(self._pipeline, [row], sampling, store, batches=batches)
            pairs = [
                (
                    store.get(store.key(row, sampling, b)).images,
                    store.get(store.key(None, sampling, b)).images,
                )
                for b in batches
            ]
            found = [value for drawn, dense in pairs for value in _MEASURES[ruler.quality](drawn, dense)]
        first = batches[0].start
        return tuple(found[number - first] for number in images)


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
