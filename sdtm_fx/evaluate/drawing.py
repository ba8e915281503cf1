"""Draws the images of rows: the pipeline is rewritten, sampled and restored, row by row."""

from __future__ import annotations

import contextlib
import dataclasses
import inspect
import time
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch
from torch import Tensor

from sdtm_fx.errors import SdtmFxError
from sdtm_fx.evaluate.cost import rewriting_in
from sdtm_fx.evaluate.drawn import Drawn
from sdtm_fx.evaluate.fidelity import relative_error
from sdtm_fx.evaluate.row import Row
from sdtm_fx.evaluate.sampling import Sampling
from sdtm_fx.evaluate.store import Store
from sdtm_fx.evaluate.variant import Metered, applied, variant

_NEEDED = (
    "prompt", "height", "width", "num_inference_steps", "generator", "output_type", "callback_on_step_end",
)  # fmt: skip


def check_pipeline(pipeline: Any) -> None:
    """Raise unless a pipeline is dense and takes the arguments that all rows are drawn with.

    Raises:
        SdtmFxError: It is rewritten already, is no diffusers pipeline, or lacks an argument.
    """
    if not isinstance(getattr(pipeline, "components", None), dict):
        raise SdtmFxError(f"evaluate: found a {type(pipeline).__name__}; a diffusers pipeline is needed")
    if rewriting_in(pipeline) is not None:
        raise SdtmFxError("evaluate: the pipeline is rewritten already; call sdtm_fx.restore(pipeline) first")
    known = inspect.signature(type(pipeline).__call__).parameters
    missing = [name for name in _NEEDED if name not in known]
    if missing:
        raise SdtmFxError(f"evaluate: {type(pipeline).__name__} does not accept {', '.join(missing)}")


def draw(
    pipeline: Any,
    rows: Sequence[Row],
    sampling: Sampling,
    store: Store,
    *,
    batches: Sequence[range] | None = None,
    on_image: Callable[[int], None] = lambda count: None,
) -> None:
    """Draw what the store does not hold yet: dense batches first, then those of every row.

    Args:
        pipeline: Dense; it is dense again afterwards, whatever happens.
        rows: Rows; dense ones are served by the dense batches.
        sampling: What to draw.
        store: Where batches are kept.
        batches: Which batches of `sampling` to draw; None draws all.
        on_image: Called with the number of images after each batch, drawn or found.

    Raises:
        SdtmFxError: The pipeline or an image is not as it should be; and whatever `rewrite` raises.
    """
    check_pipeline(pipeline)
    chosen = sampling.batches if batches is None else batches
    wanted = set(chosen)
    for batch in chosen:
        key = store.key(None, sampling, batch)
        if not store.holds(key, latents=sampling.follows(batch)):
            store.put(key, _draw_batch(pipeline, sampling, batch, None, "dense"))
        on_image(len(batch))
    for row in _variants(rows):
        mine = [batch for batch in sampling.batches_of(row) if batch in wanted]
        _draw_row(pipeline, row, sampling, store, mine, on_image)


def _draw_row(
    pipeline: Any,
    row: Row,
    sampling: Sampling,
    store: Store,
    batches: Sequence[range],
    on_image: Callable[[int], None],
) -> None:
    """Draw a row that is not dense; the pipeline is touched only where a batch is missing."""
    with contextlib.ExitStack() as stack:
        meter: Callable[[], Metered] | None = None
        for batch in batches:
            key, follows = store.key(row, sampling, batch), sampling.follows(batch)
            if not store.holds(key, growth=follows):
                meter = meter or stack.enter_context(applied(pipeline, row, sampling.steps))
                dense = store.get(store.key(None, sampling, batch)).latents if follows else None
                with meter() as cost:
                    drawn = _draw_batch(pipeline, sampling, batch, dense, row.label)
                store.put(key, dataclasses.replace(drawn, cost=cost(len(batch))))
            on_image(len(batch))


def images_to_draw(rows: Sequence[Row], sampling: Sampling) -> int:
    """How many images `draw` reports: the dense ones, and those of every row that differs from them."""
    drawn = [batch for row in _variants(rows) for batch in sampling.batches_of(row)]
    return len(sampling.seeds) + sum(map(len, drawn))


def _variants(rows: Sequence[Row]) -> list[Row]:
    """The rows that are not dense, one of each kind: one that is judged, if any is, since it needs more images."""
    kinds: dict[str, Row] = {}
    for row in sorted(rows, key=lambda row: not row.judged):
        kind = variant(row)
        if kind is not None:
            kinds.setdefault(kind, row)
    return list(kinds.values())


def _draw_batch(pipeline: Any, sampling: Sampling, batch: range, dense: Tensor | None, label: str) -> Drawn:
    """Draw a batch; without `dense`, a batch that is followed keeps its latents."""
    follows = sampling.follows(batch)
    latents: list[Tensor] = []

    def record(pipeline: Any, step: int, timestep: Any, tensors: dict[str, Any]) -> dict[str, Any]:
        latents.append(tensors["latents"].detach().cpu().clone())
        return {}

    settings: dict[str, Any] = (
        {} if sampling.guidance_scale is None else {"guidance_scale": sampling.guidance_scale}
    )
    start = time.perf_counter()
    with torch.no_grad():
        images = pipeline(
            prompt=[sampling.prompts[i] for i in batch],
            height=sampling.height,
            width=sampling.width,
            num_inference_steps=sampling.steps,
            # A generator for each image, on the CPU: noise depends on neither batch nor device.
            generator=[torch.Generator().manual_seed(sampling.seeds[i]) for i in batch],
            output_type="pt",
            callback_on_step_end=record if follows else None,
            **settings,
        ).images
    seconds = time.perf_counter() - start
    images = images.detach().float().cpu().contiguous()
    if not bool(torch.isfinite(images).all()):
        raise SdtmFxError(
            f"evaluate: row {label!r} drew images that are not finite (seed {sampling.seeds[batch.start]})"
        )
    if not follows:
        return Drawn(images, seconds)
    trajectory = torch.stack(latents)
    if dense is None:
        return Drawn(images, seconds, latents=trajectory)
    return Drawn(images, seconds, growth=relative_error(trajectory, dense))


@contextlib.contextmanager
def threads(count: int) -> Iterator[None]:
    """Compute on so many CPU threads inside the block; results depend on it in the last bits."""
    before = torch.get_num_threads()
    torch.set_num_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(before)
