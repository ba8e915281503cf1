"""What a row does to the pipeline while its images are drawn, and what that costs."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from typing import Any, TypeAlias

from sdtm_fx.cost.cost import Cost
from sdtm_fx.evaluate.cost import CostWatch
from sdtm_fx.evaluate.hook import CountedCalls, HookedRow
from sdtm_fx.evaluate.row import Row
from sdtm_fx.rewrite import rewritten

Metered: TypeAlias = "AbstractContextManager[Callable[[int], Cost]]"
"""A block in which images are drawn; it gives a function from their number to what each of them cost."""


def variant(row: Row) -> str | None:
    """Text that is equal for rows that draw the same images; None for dense rows."""
    if isinstance(row, HookedRow) and row.hook is not None:
        return row.hook.fingerprint()
    return None if row.recipe is None else row.recipe.fingerprint()


def variant_name(row: Row) -> str:
    """A readable name of the variant, for files."""
    if row.recipe is not None:
        return row.recipe.name.replace("/", "-")
    return "dense" if variant(row) is None else "hooked"


@contextlib.contextmanager
def applied(pipeline: Any, row: Row, steps: int) -> Iterator[Callable[[], Metered]]:
    """Rewrite, or hook, a pipeline as a row says; afterwards it is dense again, whatever happens.

    Args:
        pipeline: Dense.
        row: A row that is not.
        steps: Denoising steps of what will be drawn.

    Yields:
        What starts a block in which the cost is metered.

    Raises:
        SdtmFxError: As `rewrite`, or as the hook.
    """
    if isinstance(row, HookedRow) and row.hook is not None:
        with row.hook.applied(pipeline, steps):
            yield lambda: _metered_hook(pipeline)
        return
    assert row.recipe is not None
    # Images must not depend on what was measured on this machine; nor does the identity of the row.
    with rewritten(pipeline, row.recipe.override(gate="off")):
        watch = CostWatch(pipeline)
        yield lambda: _metered_recipe(watch)


@contextlib.contextmanager
def _metered_recipe(watch: CostWatch) -> Iterator[Callable[[int], Cost]]:
    with watch.calls() as seen:
        yield lambda images: watch.cost(seen, images)


@contextlib.contextmanager
def _metered_hook(pipeline: Any) -> Iterator[Callable[[int], Cost]]:
    with CountedCalls(pipeline).counting() as counted:
        yield counted.cost
