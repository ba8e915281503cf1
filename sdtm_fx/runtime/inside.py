"""What sites inside of a span merge in one phase: by which method, and how many slots."""

from __future__ import annotations

from dataclasses import dataclass

from sdtm_fx.errors import ScheduleError
from sdtm_fx.layer_rates import scaled_count
from sdtm_fx.methods.base import Method
from sdtm_fx.recipe.inside import InsideSpec
from sdtm_fx.recipe.sections import Stage
from sdtm_fx.reductions import Reduce

_ROUNDING = 1e-6


@dataclass(frozen=True)
class Inside:
    """Merging inside of the spans of a phase.

    Attributes:
        method: What decides which slots are merged.
        remove: How many of the span's slots go.
        reduce: What becomes of merged slots; None: as the method has it.
    """

    method: Method
    remove: int
    reduce: Reduce | None


def merging_inside(stage: Stage) -> InsideSpec | None:
    """What a stage merges inside of its spans; None where that is nothing, ratio 0 among it."""
    return None if stage.inside is None or stage.inside.ratio == 0 else stage.inside


def inside_of(stage: Stage, kept: int, round_to: int) -> Inside | None:
    """What merges inside of the spans of a stage in a phase.

    Args:
        stage: The stage.
        kept: Slots that its spans keep.
        round_to: Kept counts are multiples of this where that comes near enough.

    Raises:
        ScheduleError: The method cannot remove as many.
    """
    spec = merging_inside(stage)
    if spec is None:
        return None
    wanted, capacity = spec.ratio * kept, spec.method.capacity((1, kept))
    if wanted > capacity + _ROUNDING:
        raise ScheduleError(
            f"stage {stage.name!r}: inside: found ratio {spec.ratio:g} of {kept} slots; {spec.method.name} can remove "
            f"at most {capacity} of them there"
        )
    return Inside(spec.method, removed_inside(spec, kept, round_to), spec.reduce)


def removed_inside(spec: InsideSpec, kept: int, round_to: int) -> int:
    """How many of a span's slots sites inside of it remove, or as many as the method can.

    Args:
        spec: What merges there.
        kept: Slots of the span.
        round_to: As for `inside_of`.
    """
    capacity = spec.method.capacity((1, kept))
    part = min(spec.ratio * kept / capacity, 1.0) if capacity else 0.0
    return scaled_count(capacity, part, kept, spec.method.quantum(), round_to)
