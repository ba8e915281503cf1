"""`evaluate`: the quality of a pipeline under several recipes, with the same prompts and seeds."""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from sdtm_fx.cost.cost import Cost
from sdtm_fx.cost.counter import Macs
from sdtm_fx.errors import SdtmFxError
from sdtm_fx.evaluate.drawing import check_pipeline, draw
from sdtm_fx.evaluate.drawn import Drawn
from sdtm_fx.evaluate.fidelity import SSIM_WINDOW, psnr, ssim
from sdtm_fx.evaluate.identity import identity, weights_digest
from sdtm_fx.evaluate.judging import Yardstick, judge_features, judge_grades, yardstick
from sdtm_fx.evaluate.result import Evaluation, RowResult
from sdtm_fx.evaluate.row import Judge, Row, check_rows
from sdtm_fx.evaluate.sampling import Sampling
from sdtm_fx.evaluate.store import Store
from sdtm_fx.evaluate.variant import variant

SHOWN = 8
"""Images of each row that a result keeps to look at."""


def evaluate(
    pipeline: Any,
    rows: Sequence[Row],
    *,
    prompts: Sequence[str],
    seeds: Sequence[int],
    steps: int,
    height: int,
    width: int,
    guidance_scale: float | None = None,
    batch: int = 4,
    paired: int | None = None,
    judge: Judge | None = None,
    judged: int | None = None,
    reference: Tensor | None = None,
    store: Store | None = None,
    on_image: Callable[[int], None] = lambda count: None,
) -> Evaluation:
    """Sample a pipeline densely and under every recipe, and measure how far the images move.

    The dense images are drawn once; rows without a recipe are served by them. Equal calls on one machine give
    equal results, bit for bit.

    Args:
        pipeline: A diffusers text-to-image pipeline that is not rewritten; it is left so, errors or not.
        rows: What to compare.
        prompts: One per image.
        seeds: Of the noise, one per image.
        steps: Denoising steps.
        height: Pixels.
        width: Pixels.
        guidance_scale: Of the pipeline; None leaves its default.
        batch: Images per call of the pipeline.
        paired: How many images, from the first, are compared with dense ones; None compares all.
        judge: Grades images against their prompts, and gives the features of Fréchet distances.
        judged: How many images, from the first, it sees of the rows that it judges; None shows it all.
        reference: [M, 3, H, W] real images in [0, 1] to take Fréchet distances to; the first `judged` are used,
            and as many again for the floor of the distance.
        store: Keeps what is drawn; None forgets it.
        on_image: Called with a number of images after each batch.

    Raises:
        SdtmFxError: The settings, the pipeline, or an image is not as it should be; and whatever `rewrite` raises.
    """
    check_rows(rows)
    count = len(seeds)
    sampling = Sampling(
        prompts=tuple(prompts),
        seeds=tuple(seeds),
        steps=steps,
        height=height,
        width=width,
        guidance_scale=guidance_scale,
        batch=batch,
        paired=count if paired is None else paired,
        judged=0 if judge is None else count if judged is None else judged,
    )
    check_pipeline(pipeline)
    store = Store(identity(pipeline)) if store is None else store
    draw(pipeline, rows, sampling, store, on_image=on_image)
    return measure(rows, sampling, store, judge=judge, reference=reference)


def measure(
    rows: Sequence[Row],
    sampling: Sampling,
    store: Store,
    *,
    judge: Judge | None = None,
    reference: Tensor | None = None,
) -> Evaluation:
    """Measure what `draw` left in a store.

    Args:
        rows: As they were drawn.
        sampling: As it was drawn.
        store: Holds every batch.
        judge: As in `evaluate`.
        reference: As in `evaluate`.

    Raises:
        SdtmFxError: There are fewer real images than judged ones, or images are too small for SSIM.
    """
    if min(sampling.height, sampling.width) < SSIM_WINDOW:
        raise SdtmFxError(
            f"evaluate: images of {sampling.height} x {sampling.width} px are smaller than the window of SSIM, "
            f"{SSIM_WINDOW} px"
        )
    dense = _of_row(None, sampling, store)
    seen = sampling.judged if judge is not None else 0
    scale = None
    if judge is not None and seen:
        scale = yardstick(judge, dense.images[:seen], reference)
    results = []
    for row in rows:
        drawn = dense
        if variant(row) is not None:
            drawn = _of_row(row, sampling, store)
        result = _compare(row, drawn, dense, sampling)
        if judge is not None and scale is not None and row.judged:
            result = _judged(result, drawn.images[:seen], judge, scale, sampling.prompts[:seen])
        results.append(result)
    return Evaluation(
        sampling=sampling,
        identity=store.identity,
        rows=tuple(results),
        attributes=tuple(judge.attributes) if judge is not None and seen else (),
        judge_digest=weights_digest(judge) if seen and isinstance(judge, torch.nn.Module) else None,
        frechet_floor=None if scale is None else scale.floor(),
        frechet_missing=None if scale is None else scale.missing,
    )


def _of_row(row: Row | None, sampling: Sampling, store: Store) -> Drawn:
    """All batches of a row as one, without latents, which are large."""
    needed = sampling.batches if row is None else sampling.batches_of(row)
    keys = [store.key(row, sampling, batch) for batch in needed]
    batches = [dataclasses.replace(store.get(key), latents=None) for key in keys]
    images = torch.cat([drawn.images for drawn in batches])
    growth = [drawn.growth for drawn in batches if drawn.growth is not None]
    costs = [(drawn.cost, len(drawn.images) / len(images)) for drawn in batches if drawn.cost is not None]
    cost = None
    if costs:
        macs = [(c.macs * share, c.dense * share) for c, share in costs]
        cost = Cost(sum((m for m, _ in macs), Macs()), sum((d for _, d in macs), Macs()))
    return Drawn(
        images=images,
        seconds=sum(drawn.seconds for drawn in batches),
        growth=torch.cat(growth) if growth else None,
        cost=cost,
    )


def _compare(row: Row, drawn: Drawn, dense: Drawn, sampling: Sampling) -> RowResult:
    paired = sampling.paired
    pairs = [
        (drawn.images[part.start : part.stop], dense.images[part.start : part.stop])
        for part in (range(i, min(i + 64, paired)) for i in range(0, paired, 64))
    ]
    growth: list[list[float]] = [[0.0] * sampling.steps] * paired
    if drawn.growth is not None:
        growth = drawn.growth[:paired].tolist()
    return RowResult(
        row=row,
        cost=drawn.cost,
        seconds=drawn.seconds,
        images=drawn.images[:SHOWN],
        psnr=tuple(itertools.chain.from_iterable(psnr(*pair) for pair in pairs)),
        ssim=tuple(itertools.chain.from_iterable(ssim(*pair) for pair in pairs)),
        growth=tuple(map(tuple, growth)),
    )


def _judged(
    result: RowResult, images: Tensor, judge: Judge, scale: Yardstick, captions: Sequence[str]
) -> RowResult:
    features = judge_features(judge, images)
    return dataclasses.replace(
        result,
        right=judge_grades(judge, images, captions),
        frechet_real=scale.to_real(features),
        frechet_dense=scale.to_dense(features),
    )
