"""Where the image tokens are in a sequence that also holds others."""

from __future__ import annotations

from dataclasses import dataclass
from fractions import Fraction

from sdtm_fx.inspecting.lengths import Length
from sdtm_fx.inspecting.observing import Observation, Seen
from sdtm_fx.inspecting.survey import Order


@dataclass(frozen=True)
class Sequenced:
    """The order of a sequence.

    Attributes:
        order: Where the image is.
        beside: Argument of the block whose length is that of the other tokens.
    """

    order: Order
    beside: str | None = None


def sequence_of(path: str, block: str, length: Length, observation: Observation) -> Sequenced:
    """Find how the sequence that a module is given was joined.

    The join is the last one before the module, outside of attention, that makes a sequence of this length.

    Args:
        path: The module.
        block: Its block.
        length: Of the sequence.
        observation: What happens in calls of the model.
    """
    if length.stream == "image":
        return Sequenced("image")
    rest = Length(Fraction(0), length.text, length.constant)
    arguments = observation.calls[block][0].inputs
    beside = next((n for n, d in arguments.items() if len(d) == 3 and d[1] == rest), None)
    order: Order = "unknown"
    for event in observation.seen:
        if event.what == "enter" and event.path == path:
            break
        if event.what == "cat" and event.outputs.get("", ())[1:2] == (length,) and event.note == 1:
            order = _order(event)
    return Sequenced(order, beside)


def _order(event: Seen) -> Order:
    parts = [dims[1] for dims in event.inputs.values() if len(dims) == 3]
    images = [i for i, part in enumerate(parts) if part is not None and part.image > 0]
    if len(images) != 1:
        return "unknown"
    if images[0] == len(parts) - 1:
        return "text first"
    return "image first" if images[0] == 0 else "unknown"
