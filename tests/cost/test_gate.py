"""The maths of the cost gate."""

from __future__ import annotations

import itertools

from hypothesis import given, settings
from hypothesis import strategies as st

from sdtm_fx.cost.gate import NOTHING, Offer, best_offers, marginal, pays, subsets

SECONDS = st.floats(0, 10, allow_nan=False)
MODEST = settings(max_examples=60, deadline=None)


@st.composite
def blocks(draw: st.DrawFn) -> list[list[Offer]]:
    """Blocks of a plan group with one to three sites, and any price for any set of them."""
    names = [("attn", "ff", "attn2")[: draw(st.integers(1, 3))] for _ in range(draw(st.integers(1, 3)))]
    return [[Offer(kept, draw(SECONDS), draw(SECONDS)) for kept in subsets(sites)] for sites in names]


def total(chosen: tuple[Offer, ...], plan: float) -> float:
    return sum(o.net for o in chosen) - (plan if any(o.sites for o in chosen) else 0.0)


@MODEST
@given(blocks(), SECONDS)
def test_no_choice_is_better_and_none_is_worse_than_dense(group: list[list[Offer]], plan: float) -> None:
    chosen = best_offers(group, plan)
    every = itertools.product(*([*offers, NOTHING] for offers in group))
    best = max(total(combination, plan) for combination in every)
    assert total(chosen, plan) >= 0.0
    assert abs(total(chosen, plan) - best) < 1e-9
    assert pays(chosen, plan)


@MODEST
@given(blocks(), SECONDS, SECONDS)
def test_a_dearer_plan_never_brings_a_site_back(group: list[list[Offer]], plan: float, more: float) -> None:
    before, after = best_offers(group, plan), best_offers(group, plan + more)
    assert all(late.sites <= early.sites for early, late in zip(before, after, strict=True))


@MODEST
@given(st.floats(0, 10), st.floats(0, 10), SECONDS, st.floats(0, 1))
def test_a_site_that_saves_more_stays(saved: float, spent: float, plan: float, more: float) -> None:
    def kept(seconds: float) -> bool:
        return bool(best_offers([[Offer(frozenset({"ff"}), seconds, spent)]], plan)[0].sites)

    assert kept(saved + more) >= kept(saved)


def test_two_sites_share_one_plan() -> None:
    attn, ff = Offer(frozenset({"attn"}), 3.0, 1.0), Offer(frozenset({"ff"}), 3.0, 1.0)
    both = Offer(frozenset({"attn", "ff"}), 6.0, 2.0)
    assert best_offers([[both, attn, ff]], plan=3.0) == (both,)
    assert best_offers([[attn]], plan=3.0) == (NOTHING,)
    assert best_offers([[attn], [ff]], plan=3.0) == (attn, ff), "and so do two blocks of one group"
    assert best_offers([[both, attn, ff]], plan=4.0) == (both,), "what costs what it saves is kept"
    assert best_offers([[both, attn, ff]], plan=4.1) == (NOTHING,)


def test_what_a_site_spends_has_the_plan_in_it_where_no_other_site_needs_one() -> None:
    attn, ff = Offer(frozenset({"attn"}), 3.0, 1.0), Offer(frozenset({"ff"}), 2.0, 0.5)
    offers = {o.sites: o for o in (attn, ff, Offer(frozenset({"attn", "ff"}), 5.0, 1.5))}
    assert marginal(offers, NOTHING, "ff", plan=7.0) == (2.0, 7.5)
    assert marginal(offers, attn, "ff", plan=7.0) == (2.0, 0.5)
    assert marginal(offers, attn, "attn", plan=7.0) == (3.0, 8.0)


def test_every_set_of_a_few_sites_is_tried_and_the_plain_ones_of_many() -> None:
    assert len(list(subsets("abcd"))) == 15
    assert next(subsets("ab")) == {"a", "b"}
    many = list(subsets("abcdef"))
    assert sorted(map(len, many)) == [1] * 6 + [5] * 6 + [6]
    alone = Offer(frozenset("a"), 2.0, 1.0)
    assert marginal({alone.sites: alone}, Offer(frozenset("bc"), 1.0, 0.0), "a", 0.5) == (2.0, 1.5)
