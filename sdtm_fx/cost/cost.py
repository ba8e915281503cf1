"""What something costs, beside what the dense model costs."""

from __future__ import annotations

from dataclasses import dataclass

from sdtm_fx.cost.counter import Macs


@dataclass(frozen=True)
class Cost:
    """MACs, with a recipe and without.

    Attributes:
        macs: With it.
        dense: Of the dense model, over the same steps.
    """

    macs: Macs
    dense: Macs

    @property
    def linear(self) -> float:
        """Share of the dense MACs, linear layers only (the convention of the SDTM paper)."""
        return self.macs.linear / self.dense.linear

    @property
    def total(self) -> float:
        """Share of the dense MACs, all of them."""
        return self.macs.total / self.dense.total

    @property
    def speedup(self) -> float:
        """Total dense MACs over total MACs."""
        return self.dense.total / self.macs.total
