"""What leaving sites out saves, at any size, from one count of each.

A skipped site may leave out its text tokens too: how much of its linear work runs on text, and which attention text has
part in, the lengths of the sequences tell.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import replace

from sdtm_fx.cost.counter import Attended, MacCounter
from sdtm_fx.cost.saving import Saving, attended, comparing_nothing, registers


def saving_of_skipping(
    dense: MacCounter, skipped: MacCounter, batch: int, tokens: int, text: int, name: str | None
) -> Saving:
    """What leaving sites out saves in the block (None) or at one site.

    Args:
        dense: Counted in the whole block.
        skipped: Counted where sites were left out.
        batch: Samples of both counts.
        tokens: Those of the image stream.
        text: Text tokens.
        name: The site.
    """
    before, after = (c.macs if name is None else c.inside[name] for c in (dense, skipped))
    saved, rows = before - after, Counter(dense.rows[name])
    rows.subtract(skipped.rows[name])
    always = registers(dense, tokens, text, name)
    others = text + int(always)
    # A layer on both streams in one sequence counts for each by its tokens.
    shared = rows[tokens + others] * others / (tokens + others)
    text_linear = (rows[others] + shared) / others / batch if others not in (0, tokens) else 0.0
    fixed = rows[0] / batch + text_linear * always
    linear = (saved.linear / batch - text_linear * text - fixed) / tokens
    linear_alone = Saving(linear, 0.0, 0.0, text_linear, fixed=fixed, skips=True)
    if not saved.attention:
        return linear_alone
    calls, left = (Counter(_shapes(c, name)) for c in (dense, skipped))
    of_image = [(shape, n) for shape, n in (calls - left).items() if text and shape.queries == tokens]
    alone = sum(shape.macs * n for shape, n in of_image if shape.keys == tokens)
    across = sum(shape.macs * n for shape, n in of_image if shape.keys != tokens)
    products = comparing_nothing(dense, name) - comparing_nothing(skipped, name)
    skips_text = not left - calls  # else text attends to itself in their place
    pairs = (tokens + others) ** 2 - (0 if skips_text else others**2)
    return replace(
        linear_alone,
        attention=(saved.attention - alone - across - products) / batch / pairs,
        text_share=1.0,
        skips_text=skips_text,
        cross=across / batch / tokens / (text or 1),
        keys=alone / batch / tokens**2,
        products=products / batch / tokens,
        always=always,
    )


def _shapes(counter: MacCounter, name: str | None) -> list[Attended]:
    """The calls of attention, wherever they ran."""
    return [replace(call, inside=()) for call in attended(counter, name)]
