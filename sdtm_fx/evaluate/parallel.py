"""Draws with several processes: each takes a share of the batches, dense and rewritten."""

from __future__ import annotations

import queue
import traceback
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch.multiprocessing as mp

from sdtm_fx.errors import SdtmFxError
from sdtm_fx.evaluate.drawing import draw, threads
from sdtm_fx.evaluate.models import ModelSource
from sdtm_fx.evaluate.row import Row
from sdtm_fx.evaluate.sampling import Sampling
from sdtm_fx.evaluate.store import Store


def draw_in_processes(
    source: ModelSource,
    rows: Sequence[Row],
    sampling: Sampling,
    identity: Mapping[str, Any],
    folder: Path,
    *,
    processes: int,
    on_image: Callable[[int], None] = lambda count: None,
) -> None:
    """Draw into a folder what it does not hold yet.

    Batches have fixed members, and every process uses as many threads as `identity` names, so the result is the
    same for any number of processes.

    Args:
        source: The model; each process loads its own.
        rows: Rows.
        sampling: What to draw.
        identity: Of the store.
        folder: Of the store.
        processes: How many, at least 1.
        on_image: As in `draw`.

    Raises:
        SdtmFxError: As `draw`; or a process ended without a word.
    """
    context = mp.get_context("spawn")
    messages: Any = context.Queue()
    workers = [
        context.Process(
            target=_work,
            args=(
                source,
                tuple(rows),
                sampling,
                dict(identity),
                folder,
                sampling.batches[first::processes],
                messages,
            ),
            daemon=True,
        )
        for first in range(min(processes, len(sampling.batches)))
    ]
    try:
        for worker in workers:
            worker.start()
        _listen(workers, messages, on_image)
        for worker in workers:
            worker.join()
    finally:
        for worker in workers:
            if worker.is_alive():
                worker.terminate()
                worker.join()


def _listen(workers: list[Any], messages: Any, on_image: Callable[[int], None]) -> None:
    """Follow the workers until all are done."""
    left = len(workers)
    while left:
        try:
            kind, content = messages.get(timeout=1.0)
        except queue.Empty:
            dead = [worker for worker in workers if worker.exitcode not in (None, 0)]
            if dead:
                raise SdtmFxError(
                    f"evaluate: a process ended with exit code {dead[0].exitcode} and no message; out of memory?"
                ) from None
            continue
        if kind == "images":
            on_image(content)
        elif kind == "refused":
            raise content
        elif kind == "failed":
            raise RuntimeError(f"in a process of the evaluation:\n{content}")
        else:
            left -= 1


def _work(
    source: ModelSource,
    rows: tuple[Row, ...],
    sampling: Sampling,
    identity: dict[str, Any],
    folder: Path,
    batches: tuple[range, ...],
    messages: Any,
) -> None:
    """Draw a share of the batches, in a process of its own."""
    try:
        with threads(identity["threads"]):
            draw(
                source.load(), rows, sampling, Store(identity, folder), batches=batches,
                on_image=lambda count: messages.put(("images", count)),
            )  # fmt: skip
    except SdtmFxError as error:
        messages.put(("refused", error))
    except Exception:  # sent whole, and raised again by the process that listens
        messages.put(("failed", traceback.format_exc()))
    else:
        messages.put(("done", None))
