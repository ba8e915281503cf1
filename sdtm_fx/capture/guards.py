"""Guards: what a trace assumed about values that may differ in a later call."""

from __future__ import annotations

from typing import Any

from torch import fx

from sdtm_fx.errors import SdtmFxError


class GuardFailed(SdtmFxError):
    """A call differs from the traced one where the forward branched; the block is traced again."""


def expect(value: Any, expected: Any) -> None:
    """Check an assumption of the trace where the traced forward made it.

    Raises:
        GuardFailed: `value` is not `expected`.
    """
    if value != expected:
        raise GuardFailed(f"the traced forward saw {expected!r} here, this call has {value!r}")


fx.node.has_side_effect(expect)
