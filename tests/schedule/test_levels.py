"""Quantisation of counts: lattice, number of levels, order, mean cost."""

from __future__ import annotations

import itertools
import math

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sdtm_fx.levels import TOLERANCE, Demand, Fit, lattice, multiples, quantise, within_reach

TOKENS = {1024: 3 * 256, 4096: 3 * 1024, 4080: 3 * 1000, 9216: 3 * 2304}  # N: what 2x2 windows can give up


def linear_and_square(tokens: int, square: float) -> Demand:
    return Demand(
        0.0, 0, lambda count: (1 - square) * (1 - count / tokens) + square * (1 - count / tokens) ** 2
    )


def fit(
    wanted: list[float],
    tokens: int,
    quantum: int = 3,
    round_to: int = 64,
    levels: int = 4,
    square: float = 1 / 3,
    capacity: int | None = None,
) -> Fit:
    cost = linear_and_square(tokens, square).cost
    most = TOKENS.get(tokens, tokens * 3 // 4) if capacity is None else capacity
    demands = [Demand(min(value, most), most, cost) for value in wanted]
    return quantise(demands, tokens=tokens, quantum=quantum, round_to=round_to, levels=levels)


def cosine(start: float, end: float, steps: int, tokens: int) -> list[float]:
    """All but the first and the last step of a cosine curve, in tokens."""
    return [
        tokens * (end + (start - end) * math.cos(math.pi * t / (2 * (steps - 1))))
        for t in range(1, steps - 1)
    ]


def test_lattice() -> None:
    assert lattice(4096, 3072, 3, 64) == tuple(range(192, 3073, 192))
    assert lattice(4080, 3000, 3, 64) == tuple(range(48, 3000, 192))
    assert lattice(16, 12, 3, 64) == ()
    assert lattice(16, 12, 3, 1) == (3, 6, 9, 12)


def test_multiples() -> None:
    assert multiples(64) == (64, 32, 16, 8, 4, 2, 1)
    assert multiples(48) == (48, 32, 16, 8, 4, 2, 1)
    assert multiples(1) == (1,)


def test_reach_is_an_eighth_of_the_tokens() -> None:
    assert within_reach(900, (1024,), 1024)
    assert not within_reach(895, (1024,), 1024)
    assert not within_reach(5, (), 1024)


@settings(max_examples=40, deadline=None)
@given(
    tokens=st.sampled_from(sorted(TOKENS)),
    steps=st.sampled_from([20, 28, 50]),
    start=st.floats(0.3, 0.72),
    drop=st.floats(0.1, 0.6),
    quantum=st.sampled_from([1, 3]),
    square=st.sampled_from([0.0, 1 / 3, 0.6]),
    rising=st.booleans(),
)
def test_mean_cost_levels_lattice_and_order(
    tokens: int, steps: int, start: float, drop: float, quantum: int, square: float, rising: bool
) -> None:
    end = max(start - drop, 0.05)
    wanted = cosine(start, end, steps, tokens)
    if rising:
        wanted.reverse()
    found = fit(wanted, tokens, quantum, square=square)
    cost = linear_and_square(tokens, square).cost
    exact = [(1 - square) * (1 - n / tokens) + square * (1 - n / tokens) ** 2 for n in wanted]
    actual = [cost(count) for count in found.counts]
    assert abs(sum(actual) / sum(exact) - 1) < TOLERANCE
    assert found.error == pytest.approx(sum(actual) / sum(exact) - 1, abs=1e-6)
    assert len(set(found.counts)) <= 4
    assert all(a <= b if rising else a >= b for a, b in itertools.pairwise(found.counts))
    for count in found.counts:
        assert count % quantum == 0
        assert count <= TOKENS[tokens]
        assert count == 0 or (tokens - count) % found.multiple == 0
    assert found.deviation == pytest.approx(
        sum((n - c) ** 2 for n, c in zip(wanted, found.counts, strict=True)), rel=1e-6
    )


@pytest.mark.parametrize("tokens", sorted(TOKENS))
@pytest.mark.parametrize("steps", [20, 28, 50])
def test_default_curve_keeps_multiples_of_64(tokens: int, steps: int) -> None:
    found = fit(cosine(0.7, 0.3, steps, tokens), tokens)
    assert found.multiple == 64
    assert abs(found.error) <= 0.005


@pytest.mark.parametrize("tokens", [256, 1024, 4096, 9216])
@pytest.mark.parametrize("steps", [4, 8])
def test_few_steps_pay_for_the_cost_with_alignment(tokens: int, steps: int) -> None:
    found = fit(cosine(0.7, 0.3, steps, tokens), tokens)
    assert abs(found.error) <= TOLERANCE
    assert found.multiple >= {4: 2, 8: 16}[steps]


def test_following_the_curve_is_worth_more_levels() -> None:
    wanted = cosine(0.7, 0.3, 28, 4096)
    deviations = [fit(wanted, 4096, levels=levels).deviation for levels in (1, 2, 4, 8)]
    assert deviations == sorted(deviations, reverse=True)
    assert deviations[0] > 4 * deviations[2]


def test_levels_are_near_what_the_optimal_quantiser_gives() -> None:
    wanted = cosine(0.7, 0.3, 28, 4096)
    found = fit(wanted, 4096)
    # Four even levels over a range of 0.4 N deviate by at most 0.05 N; half a lattice gap comes on top.
    assert max(abs(n - c) for n, c in zip(wanted, found.counts, strict=True)) <= 0.05 * 4096 + 2 * 96


def test_one_level_gives_one_count() -> None:
    found = fit([2048.0] * 10, 4096, levels=1)
    assert set(found.counts) == {2064}
    assert (
        found.multiple == 16
    )  # 1920 and 2112 would keep multiples of 64, but miss the cost by more than 1 %
    aligned = fit([2048.0] * 10, 4096, quantum=1, levels=1)
    assert (set(aligned.counts), aligned.multiple) == ({2048}, 64)


def test_a_curve_that_is_not_monotone_gives_equal_counts_to_equal_demands() -> None:
    wanted = [500.0, 1500.0, 2500.0, 1500.0, 500.0] * 4
    found = fit(wanted, 4096, levels=4)
    assert found.counts[:5] != found.counts[2:7]
    by_demand = sorted(zip(wanted, found.counts, strict=True))
    assert [count for _, count in by_demand] == sorted(found.counts)


def test_small_sequences_never_fail() -> None:
    for tokens in (4, 16, 36, 64):
        found = fit([tokens * 0.5] * 4, tokens)
        assert found.counts
        assert all(count % 3 == 0 and count <= tokens * 3 // 4 for count in found.counts)
        assert found.multiple < 64


def test_counts_stay_within_the_capacity_of_their_step() -> None:
    cost = linear_and_square(4096, 1 / 3).cost
    demands = [Demand(1000.0, 1000, cost)] * 6 + [Demand(1500.0, 4000, cost)] * 6
    found = quantise(demands, tokens=4096, quantum=1, round_to=64, levels=4)
    assert max(found.counts[:6]) <= 1000
    assert abs(found.error) <= TOLERANCE


def test_nothing_to_do() -> None:
    assert quantise([], tokens=4096, quantum=3, round_to=64, levels=4) == Fit((), 64, 0.0, 0.0)
