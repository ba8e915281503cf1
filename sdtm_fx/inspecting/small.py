"""The smaller copy of a model: random weights on the host, and the example call on it."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import torch

from sdtm_fx.errors import InspectionError
from sdtm_fx.inspecting.arguments import CallSizes
from sdtm_fx.inspecting.building import LIMIT, build_on_meta, fill, small_configs
from sdtm_fx.inspecting.calling import FoundCall
from sdtm_fx.inspecting.opening import Subject


@dataclass(frozen=True)
class SmallCopy:
    """A model that can be run.

    Attributes:
        model: The model.
        call: The example call, which names fields of the copy's own config.
        said: What was made smaller.
    """

    model: torch.nn.Module
    call: FoundCall
    said: str

    def arguments(self, sizes: CallSizes) -> dict[str, Any]:
        """Keyword arguments of a call of some size, on the host."""
        return self.call.values(sizes, device="cpu")


def small_copy(subject: Subject, call: FoundCall, layers: int = 2) -> SmallCopy:
    """Build the first smaller copy that the example call fits (see `building` for the rule).

    Args:
        subject: The model.
        call: Its example call.
        layers: Most layers of each kind.

    Raises:
        InspectionError: No copy of less than `building.LIMIT` weights runs.
    """
    for config, said in small_configs(subject, layers):
        smaller = replace(call, config=config)
        try:
            copy = build_on_meta(subject, config)
            with smaller.shapes():
                copy(**smaller.values(call.sizes))
        except Exception:  # a config that does not fit together is not the one: the next is tried
            continue
        kind: Any = subject.kind
        return SmallCopy(fill(kind(**config)), smaller, said)
    raise InspectionError(
        f"{subject.name}: no copy with at most {layers} layers of each kind and {LIMIT / 1e6:.0f} million weights "
        "runs, so nothing was run; give a config of a smaller model with --config, or fewer --layers"
    )
