"""Samples a dense pipeline and rewritten ones in turn, with the same prompts and seeds."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from statistics import fmean, median
from typing import Any

import torch
from torch import Tensor

from sdtm_fx.evaluate.fidelity import psnr
from sdtm_fx.explaining.explain import explain
from sdtm_fx.explaining.plan_record import PlanRecord
from sdtm_fx.explaining.record_plans import record_plans
from sdtm_fx.explaining.report import Explanation
from sdtm_fx.recipe.schema import Recipe
from sdtm_fx.rewrite import restore, rewrite

Draw = Callable[[Any, int], Tensor]
"""(pipeline, index of the case) to an image [C, H, W], float32; equal cases start from equal noise."""

Watch = Callable[[Any, int], tuple[Tensor, tuple[Tensor, ...]]]
"""The same, and beside the image what each step predicted it to be: [C, H, W] in [0, 1], one per step."""


@dataclass(frozen=True)
class Task:
    """What to sample.

    Attributes:
        title: What the pipeline is.
        slug: The same, as a file name.
        make: Makes a fresh pipeline; every call gives equal weights.
        draw: Samples one case.
        captions: One per case.
        recipes: What to rewrite with.
        peak: Largest difference that two images can have, for PSNR; None takes the range of the dense image.
        watch: Samples one case and keeps what each step predicted; None where images show nothing to a person.
    """

    title: str
    slug: str
    make: Callable[[], Any]
    draw: Draw
    captions: tuple[str, ...]
    recipes: tuple[Recipe, ...]
    peak: float | None
    watch: Watch | None = None

    @property
    def draws(self) -> int:
        """How many images a comparison draws."""
        watched = sum(map(_merges, self.recipes)) if self.watch is not None else 0
        return len(self.captions) * (1 + len(self.recipes) + watched)


@dataclass(frozen=True)
class Film:
    """One case, drawn once more while it was recorded what merged.

    Attributes:
        image: Final image.
        predictions: What each step predicted the image to be, [C, H, W] in [0, 1].
        record: What every site did.
    """

    image: Tensor
    predictions: tuple[Tensor, ...]
    record: PlanRecord


@dataclass(frozen=True)
class Outcome:
    """One rewritten pipeline beside the dense one.

    Attributes:
        recipe: Name of the recipe.
        explanation: What was merged where, and the MACs.
        images: One per case.
        psnr: To the dense image, in dB, one per case.
        seconds: Per image, one per case.
        restored: Whether the restored pipeline draws the first dense image again, bit for bit.
        films: One per case; none where nothing merges or images show nothing to a person.
    """

    recipe: str
    explanation: Explanation
    images: tuple[Tensor, ...]
    psnr: tuple[float, ...]
    seconds: tuple[float, ...]
    restored: bool
    films: tuple[Film, ...] = ()

    @property
    def mean_psnr(self) -> float:
        """Mean over the cases, in dB."""
        return fmean(self.psnr)

    @property
    def films_agree(self) -> bool:
        """Whether the images drawn while recording are those drawn without, bit for bit."""
        pairs = zip(self.films, self.images, strict=False)
        return all(torch.equal(film.image, image) for film, image in pairs)


@dataclass(frozen=True)
class Comparison:
    """All pipelines of a task.

    Attributes:
        task: What was sampled.
        images: Dense, one per case.
        seconds: Dense, per image, one per case.
        outcomes: One per recipe.
    """

    task: Task
    images: tuple[Tensor, ...]
    seconds: tuple[float, ...]
    outcomes: tuple[Outcome, ...]

    def speedup(self, outcome: Outcome) -> float:
        """Median dense time over median rewritten time, as measured here."""
        return median(self.seconds) / median(outcome.seconds)


def compare(task: Task, *, on_image: Callable[[], None] = lambda: None) -> Comparison:
    """Sample every case with every pipeline in turn, so that a busy machine slows all of them alike.

    Args:
        task: What to sample.
        on_image: Called after each image.
    """
    dense = task.make()
    # The page is about what merges, whatever pays on this machine.
    rewritten = [rewrite(task.make(), recipe.override(gate="off")) for recipe in task.recipes]
    drawn: list[list[tuple[Tensor, float]]] = [[] for _ in (dense, *rewritten)]
    for case in range(len(task.captions)):
        for results, pipeline in zip(drawn, (dense, *rewritten), strict=True):
            start = time.perf_counter()
            image = task.draw(pipeline, case)
            results.append((image, time.perf_counter() - start))
            on_image()
    images = tuple(image for image, _ in drawn[0])
    outcomes = [
        _outcome(task, recipe, pipeline, results, images, on_image)
        for recipe, pipeline, results in zip(task.recipes, rewritten, drawn[1:], strict=True)
    ]
    return Comparison(task, images, tuple(seconds for _, seconds in drawn[0]), tuple(outcomes))


def _outcome(
    task: Task,
    recipe: Recipe,
    pipeline: Any,
    results: Sequence[tuple[Tensor, float]],
    dense: Sequence[Tensor],
    on_image: Callable[[], None],
) -> Outcome:
    explanation = explain(pipeline, quiet=True)
    films = []
    if task.watch is not None and _merges(recipe):
        for case in range(len(task.captions)):
            with record_plans(pipeline) as record:
                films.append(Film(*task.watch(pipeline, case), record))
            on_image()
    restored = torch.equal(task.draw(restore(pipeline), 0), dense[0])
    return Outcome(
        recipe=recipe.name,
        explanation=explanation,
        images=tuple(image for image, _ in results),
        psnr=tuple(_psnr(image, own, task.peak) for (image, _), own in zip(results, dense, strict=True)),
        seconds=tuple(seconds for _, seconds in results),
        restored=restored,
        films=tuple(films),
    )


def _merges(recipe: Recipe) -> bool:
    return any(stage.method.merges for stage in recipe.stages)


def _psnr(image: Tensor, dense: Tensor, peak: float | None) -> float:
    """PSNR of one image, [C, H, W]; without a peak, the range of the dense one takes its place."""
    (value,) = psnr(image[None], dense[None], peak=peak or float(dense.max() - dense.min()))
    return value
