"""The pass runner: runs passes in order, checks the graph after each, and names the one that broke it."""

from __future__ import annotations

import logging
from collections.abc import Sequence

from sdtm_fx.errors import PassError, SdtmFxError
from sdtm_fx.rewriting.work import BlockWork, Pass

logger = logging.getLogger(__name__)


def run_passes(work: BlockWork, passes: Sequence[Pass]) -> dict[str, int]:
    """Run passes over one block graph.

    Args:
        work: The block; its graph is changed in place.
        passes: The passes, in order.

    Returns:
        How often each pass applied.

    Raises:
        PassError: A pass failed or left a malformed graph; names it and those that ran before.
        SdtmFxError: A pass refused the recipe or the block, in its own words.
    """
    applied: dict[str, int] = {}
    for current in passes:
        nodes = len(work.graph.nodes)
        try:
            count = current.run(work)
            work.graph.lint()
        except SdtmFxError:
            raise
        except Exception as error:
            before = ", ".join(applied) or "none"
            raise PassError(
                f"pass {current.name!r} broke the graph of {type(work.block).__name__}: "
                f"{type(error).__name__}: {error} (passes before it: {before})"
            ) from error
        applied[current.name] = count
        logger.debug(
            "%s on %s: applied %d, nodes %d -> %d",
            current.name, type(work.block).__name__, applied[current.name], nodes, len(work.graph.nodes),
        )  # fmt: skip
    return applied
