"""What merging adds and saves beside products, at any size, from one small measurement.

Merging, unmerging and forecasts move bytes in proportion to the tokens; what runs on merged tokens moves fewer, in
proportion to the removed ones. Like the products, both are counted once per block structure.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import astuple, dataclass, replace

from sdtm_fx.cost.effort import Effort


@dataclass(frozen=True)
class Extra:
    """Effort of a merged block against the dense one, products and the search for tokens left out.

    Attributes:
        per_token: Added per image token and sample.
        per_removed: Saved per removed token and sample.
        launches: Operations added to a call.
        stored: Added per image token and sample on a dense step that stores features.
        stored_launches: Operations that such a step adds.
        itemsize: Bytes per number in what was measured.
    """

    per_token: Effort
    per_removed: Effort
    launches: float
    stored: Effort
    stored_launches: float
    itemsize: int

    def spent(self, tokens: int, batch: int, itemsize: int) -> Effort:
        """What a merged call adds."""
        return _sized(self.per_token * (tokens * batch), itemsize / self.itemsize, max(self.launches, 0.0))

    def saved(self, remove: int, batch: int, itemsize: int) -> Effort:
        """What a merged call saves."""
        return _sized(self.per_removed * (remove * batch), itemsize / self.itemsize, max(-self.launches, 0.0))

    def storing(self, tokens: int, batch: int, itemsize: int) -> Effort:
        """What a dense call that stores features adds."""
        return _sized(self.stored * (tokens * batch), itemsize / self.itemsize, self.stored_launches)


def fit_extra(added: Mapping[int, Effort], stored: Effort, tokens: int, batch: int, itemsize: int) -> Extra:
    """Draw a line through what was added at one or two numbers of removed tokens.

    Args:
        added: Effort against the dense block, by removed tokens.
        stored: The same of a dense step that stores features.
        tokens: Image tokens of the measurement.
        batch: Samples of the measurement.
        itemsize: Bytes per number in it.
    """
    (few, first), (many, last) = min(added.items()), max(added.items())
    if few == many:  # a skipped site, or a very small grid: what weighs more counts
        grows = Effort(*(max(-value, 0.0) / many for value in astuple(last)))
        base = Effort(*(max(value, 0.0) for value in astuple(last)))
    else:
        grows = (first - last) * (1 / (many - few))
        base = last + grows * many
    return Extra(
        per_token=_plain(base) * (1 / tokens / batch),
        per_removed=_plain(grows) * (1 / batch),
        launches=last.launches,
        stored=_plain(stored) * (1 / tokens / batch),
        stored_launches=stored.launches,
        itemsize=itemsize,
    )


def _plain(effort: Effort) -> Effort:
    """Without products, which the closed form of savings knows, and launches, which sizes do not change."""
    return replace(effort, linear=0.0, attention=0.0, launches=0.0)


def _sized(effort: Effort, factor: float, launches: float) -> Effort:
    """Bytes of numbers of another size."""
    return replace(
        effort, streamed=effort.streamed * factor, gathered=effort.gathered * factor, launches=launches
    )
