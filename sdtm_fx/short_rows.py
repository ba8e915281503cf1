"""Slots of regions that have one slot more or less than others, so that any number of tokens can be kept."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class ShortRows:
    """R regions of `most` slots each, of which `short` regions lack the last one.

    Which regions are short follows from their number alone: they are spread evenly.

    Attributes:
        regions: R, the number of regions.
        most: d, the number of slots of a region that is not short.
        short: Number of short regions, less than R.
    """

    regions: int
    most: int
    short: int

    @staticmethod
    def removing(remove: int, regions: int, size: int) -> ShortRows:
        """Return the slots that remain where `remove` tokens go from regions of `size` tokens, as evenly as can be."""
        each, short = divmod(remove, regions)
        return ShortRows(regions, size - each, short)

    @property
    def number(self) -> int:
        """Number of slots that exist."""
        return self.regions * self.most - self.short

    def missing(self, device: torch.device) -> Tensor:
        """Return where there is no slot, [R, d] bool."""
        return self._is_short(device)[:, None] & (torch.arange(self.most, device=device) == self.most - 1)

    def places(self, device: torch.device) -> Tensor:
        """Return the number of every slot among those that exist, [R, d] int64; of a missing one, that before it."""
        region = torch.arange(self.regions, device=device)
        first = region * self.most - (region * self.short).div(self.regions, rounding_mode="floor")
        slot = torch.arange(self.most, device=device)
        return first[:, None] + slot - self.missing(device).long()

    def pack(self, rows: Tensor) -> Tensor:
        """Leave missing slots out: [B, R, d, D] to [B, slots, D]."""
        flat = rows.flatten(1, 2)
        if not self.short:
            return flat
        missing = self.missing(rows.device).flatten()
        there = torch.argsort(missing.to(torch.uint8), stable=True)[: self.number]
        return flat.index_select(1, there)

    def unpack(self, slots: Tensor) -> Tensor:
        """Bring slots back to their regions: [B, slots, D] to [B, R, d, D]; a missing one repeats that before it."""
        if not self.short:
            return slots.unflatten(1, (self.regions, self.most))
        rows = slots.index_select(1, self.places(slots.device).flatten())
        return rows.unflatten(1, (self.regions, self.most))

    def _is_short(self, device: torch.device) -> Tensor:
        region = torch.arange(self.regions, device=device)
        passed = ((region + k) * self.short for k in (0, 1))
        before, after = (p.div(self.regions, rounding_mode="floor") for p in passed)
        return after > before
