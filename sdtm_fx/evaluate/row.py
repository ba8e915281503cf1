"""What is evaluated: rows of a table, and the judge that looks at their images."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

from torch import Tensor

from sdtm_fx.errors import SdtmFxError
from sdtm_fx.recipe.schema import Recipe


@dataclass(frozen=True)
class Row:
    """One way to sample the pipeline: a row of the table, and a point of the figure.

    Attributes:
        label: Name of the row; no two rows of an evaluation share one.
        method: Name of the curve that the row is a point of.
        recipe: What the pipeline is rewritten with; None leaves it dense.
        budget: Speedup by total MACs that the row was tuned to; None where it was not.
        judged: Whether the judge sees it, where there is one: that takes many more images than a comparison with
            dense ones does.
    """

    label: str
    method: str
    recipe: Recipe | None
    budget: float | None = None
    judged: bool = True


class Judge(Protocol):
    """Looks at images: one for the toys is `sdtm_fx.toy.judge.Judge`, real models bring their own."""

    @property
    def attributes(self) -> Sequence[str]:
        """Names of what is graded, A of them."""

    def features(self, images: Tensor) -> Tensor:
        """Return features [B, F] of images [B, 3, H, W], float32 in [0, 1]."""

    def grade(self, images: Tensor, captions: Sequence[str]) -> Tensor:
        """Say which attributes of each image are as its caption says: [B, A] bool."""


def check_rows(rows: Sequence[Row]) -> None:
    """Raise unless there are rows and their labels differ.

    Raises:
        SdtmFxError: There are no rows, or two share a label.
    """
    if not rows:
        raise SdtmFxError("evaluate: no rows; give at least one, for example Row('dense', 'dense', None)")
    labels = [row.label for row in rows]
    twice = next((label for label in labels if labels.count(label) > 1), None)
    if twice is not None:
        raise SdtmFxError(f"evaluate: two rows are labelled {twice!r}; every row needs a label of its own")
