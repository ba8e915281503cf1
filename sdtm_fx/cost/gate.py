"""The maths of the cost gate: which sites of which blocks are worth merging, in predicted seconds."""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass

_SEARCHED = 4  # sites in a block up to which every subset is tried


@dataclass(frozen=True)
class Offer:
    """What merging some sites of a block does to one call of it, the search for tokens left out.

    Attributes:
        sites: Ids of the sites that are merged.
        saved: Seconds saved.
        spent: Seconds spent on it.
    """

    sites: frozenset[str]
    saved: float
    spent: float

    @property
    def net(self) -> float:
        """Seconds won."""
        return self.saved - self.spent


NOTHING = Offer(frozenset(), 0.0, 0.0)
"""The dense block."""


def subsets(sites: Iterable[str]) -> Iterator[frozenset[str]]:
    """Yield the sets of sites that the gate may keep, the largest first and the empty one left out.

    All of them up to four sites; of more sites all, all but one, and each alone.
    """
    whole = tuple(dict.fromkeys(sites))
    sizes: Iterable[int] = range(len(whole), 0, -1)
    if len(whole) > _SEARCHED:
        sizes = (len(whole), len(whole) - 1, 1)
    for size in sizes:
        yield from map(frozenset, itertools.combinations(whole, size))


def best_offers(blocks: Sequence[Sequence[Offer]], plan: float) -> tuple[Offer, ...]:
    """Choose what the blocks of a plan group merge: the most seconds won, and never less than none.

    Blocks choose each on its own; the plan is made once, and only where some block merges.

    Args:
        blocks: For each block what it can do.
        plan: Seconds that the plan takes.

    Returns:
        One offer per block, `NOTHING` where it stays dense. What costs exactly what it saves is kept.
    """
    chosen = tuple(max((*offers, NOTHING), key=lambda o: (o.net, len(o.sites))) for offers in blocks)
    return chosen if pays(chosen, plan) else (NOTHING,) * len(blocks)


def together(blocks: Sequence[Sequence[Offer]], plan: float) -> tuple[Offer, ...]:
    """Choose whether the blocks of a span merge, all of them or none; what costs exactly what it saves is kept.

    Args:
        blocks: For each block the one thing that it can do.
        plan: Seconds that the plan takes.
    """
    chosen = tuple(offers[0] for offers in blocks)
    return chosen if pays(chosen, plan) else (NOTHING,) * len(blocks)


def pays(chosen: Sequence[Offer], plan: float) -> bool:
    """Whether what the blocks of a plan group win is at least the price of their plan."""
    return sum(offer.net for offer in chosen) >= (plan if any(offer.sites for offer in chosen) else 0.0)


def marginal(
    offers: Mapping[frozenset[str], Offer], chosen: Offer, site: str, plan: float
) -> tuple[float, float]:
    """Seconds that one site saves and spends beside the others that are merged.

    Args:
        offers: What the block can do, by sites.
        chosen: What it does.
        site: A site, merged or not.
        plan: Seconds of the plan, where no other block of its group needs it.
    """
    others = chosen.sites - {site}
    without = offers.get(others, NOTHING)
    both = offers.get(others | {site})
    if both is None:  # a pair that was not looked at, in a block with many sites
        both, without, others = offers[frozenset({site})], NOTHING, frozenset()
    return both.saved - without.saved, both.spent - without.spent + (0.0 if others else plan)
