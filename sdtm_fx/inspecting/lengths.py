"""Lengths of sequences as equations: which dimension follows the image, and which the text.

A length is read at several sizes of call and solved for ``image * area + text * tokens of text + constant``, where
area is rows times columns of the latent.
"""

from __future__ import annotations

import functools
from dataclasses import dataclass, replace
from fractions import Fraction

from sdtm_fx.inspecting.arguments import CallSizes


@dataclass(frozen=True)
class Length:
    """One length.

    Attributes:
        image: Tokens for each position of the latent: 1/4 where patches are 2 x 2.
        text: Tokens for each token of text.
        constant: Tokens that are always there.
    """

    image: Fraction = Fraction(0)
    text: Fraction = Fraction(0)
    constant: Fraction = Fraction(0)

    def at(self, sizes: CallSizes) -> int:
        """The length at a size."""
        return int(self.image * sizes.area + self.text * sizes.text + self.constant)

    @property
    def stream(self) -> str:
        """``image``, ``text``, ``both``, or ``other``."""
        if self.image > 0:
            return "both" if self.text or self.constant else "image"
        return "text" if self.text > 0 else "other"

    def says(self, finest: Fraction = Fraction(1)) -> str:
        """The equation in N (tokens of the image on its finest grid) and T (tokens of text)."""
        parts = [_term(self.image / finest if finest else self.image, "N"), _term(self.text, "T")]
        if self.constant:
            parts.append(str(self.constant))
        return " + ".join(p for p in parts if p) or "0"


def other_sizes(first: CallSizes) -> tuple[CallSizes, ...]:
    """The sizes at which lengths are read: the given one, another grid, another text, and one to check by.

    Grids keep their proportions: some models take squares only. The third tells an area from a side.
    """
    sides = ((1, 0), (2, 0), (1, 4), (3, 4))
    return tuple(
        replace(first, height=n * first.height, width=n * first.width, text=first.text + more)
        for n, more in sides
    )


@functools.cache
def solve(values: tuple[int, ...], sizes: tuple[CallSizes, ...]) -> Length | None:
    """Solve for a length.

    Args:
        values: The length at each size, in the order of `other_sizes`.
        sizes: The sizes.

    Returns:
        The equation, or None where none of this form holds at all sizes.
    """
    base, grid, text = values[:3]
    image = Fraction(grid - base, sizes[1].area - sizes[0].area)
    words = Fraction(text - base, sizes[2].text - sizes[0].text)
    length = Length(image, words, base - image * sizes[0].area - words * sizes[0].text)
    fits = all(length.at(s) == v for v, s in zip(values, sizes, strict=True))
    return length if fits else None


def _term(factor: Fraction, letter: str) -> str:
    if not factor:
        return ""
    if factor == 1:
        return letter
    return (
        f"{factor}{letter}"
        if factor.denominator == 1
        else f"{factor.numerator if factor.numerator > 1 else ''}{letter}/{factor.denominator}"
    )
