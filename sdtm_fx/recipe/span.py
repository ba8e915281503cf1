"""A span: a run of blocks that computes fewer image tokens from end to end."""

from __future__ import annotations

from typing import Literal

from sdtm_fx.recipe.part import Count, Label, Part, Text


class SpanSpec(Part):
    """Blocks between which image tokens stay merged: merged once where it begins, unmerged once where it ends.

    In a stage with the method `skip` none of them runs: what they add to the image tokens, all together, is forecast
    from dense steps. One feature is held then, in place of one for every site.

    `first` and `last` may each match several blocks; they are paired in the order of execution, and every pair is a
    span of its own: with the same glob for both, every block merges once and unmerges once.
    """

    id: Label
    """Name that stages use, beside those of sites."""
    first: int | Text
    """Block in which the span begins: its number in the order of execution (negative: from the end), or a glob over
    block paths."""
    last: int | Text
    """Block at whose end the tokens are unmerged: its number or a glob."""
    enter: Literal["start", "end"] = "start"
    """Whether tokens are merged at the start of the first block, or at its end, behind its feed-forward; a span that is
    forecast begins at the start."""
    residual: Literal["dense", "merged"] = "dense"
    """What leaves the last block, x being the stream where the span begins and y that at its end: ``dense`` is
    x + unmerge(y - merge(x)), so every token keeps its own part of the stream; ``merged`` is unmerge(y)."""
    input: Text = "hidden_states"
    """Argument of the blocks that carries the image tokens."""
    output: Count | None = None
    """Index of the image tokens in the tuple that the blocks return; absent: they return the tokens alone."""
    rotary: Text | None = None
    """Argument of the blocks that carries rotary tables (cos, sin), [sequence, channels] each, text in front."""
    rotary_axis: Count = 0
    """Axis of the rotary tables that the sequence lies along."""
