"""Facility location: as good as the theorem says, and every token once."""

from __future__ import annotations

import itertools
import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from sdtm_fx.methods.facility import facility_location, scanned_pairs


def cosines(seed: int, tokens: int, width: int, positive: bool = False) -> Tensor:
    x = torch.randn(tokens, width, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    x = torch.nn.functional.normalize(x.abs() if positive else x, dim=1)
    return x @ x.mT


def value(similarity: Tensor, chosen: tuple[int, ...]) -> float:
    """Equation 5."""
    return float(similarity[:, list(chosen)].max(dim=1).values.sum())


@settings(max_examples=40, deadline=None)
@given(seed=st.integers(0, 999), tokens=st.integers(1, 9), part=st.floats(0, 1), width=st.integers(1, 4))
def test_it_reaches_what_the_theorem_promises(seed: int, tokens: int, part: float, width: int) -> None:
    count = 1 + int(part * (tokens - 1))
    for positive, offset in ((False, float(tokens)), (True, 0.0)):
        table = cosines(seed, tokens, width, positive)
        chosen = tuple(facility_location(table, count).tolist())
        assert len(set(chosen)) == count
        best = max(value(table, subset) for subset in itertools.combinations(range(tokens), count))
        assert value(table, chosen) + offset >= (1 - 1 / math.e) * (best + offset) - 1e-4


@settings(max_examples=30, deadline=None)
@given(seed=st.integers(0, 999), tokens=st.integers(2, 12))
def test_every_choice_is_the_best_that_is_left(seed: int, tokens: int) -> None:
    table = cosines(seed, tokens, 3)
    chosen = facility_location(table, tokens).tolist()
    assert sorted(chosen) == list(range(tokens))
    sums = table.sum(dim=1)
    assert float(sums[chosen[0]]) == pytest.approx(float(sums.max()), abs=1e-6 * tokens)
    for count in range(1, tokens):
        before = tuple(chosen[:count])
        gains = {v: value(table, (*before, v)) for v in range(tokens) if v not in before}
        assert gains[chosen[count]] == pytest.approx(max(gains.values()), abs=1e-6 * tokens)


def test_regions_are_chosen_each_on_its_own() -> None:
    tables = torch.stack([cosines(seed, 6, 3) for seed in range(4)]).view(2, 2, 6, 6)
    chosen = facility_location(tables, 3)
    assert chosen.shape == (2, 2, 3)
    for row, column in itertools.product(range(2), range(2)):
        assert torch.equal(chosen[row, column], facility_location(tables[row, column], 3))


@pytest.mark.parametrize("table", [torch.ones(5, 5), torch.zeros(5, 5)], ids=["equal", "zero"])
def test_equal_tokens_are_chosen_once_each_and_in_order(table: Tensor) -> None:
    assert facility_location(table, 4).tolist() == [0, 1, 2, 3]


def test_rounding_does_not_decide_between_tokens_that_gain_as_much() -> None:
    # Tokens 1 and 2 are nearer to each other than to 0, so either gains what the other does.
    table = torch.eye(4, dtype=torch.float64)
    for a, b, cosine in ((0, 1, 0.3), (0, 2, 0.4), (1, 2, 0.9), (0, 3, 0.95), (1, 3, 0.35), (2, 3, 0.3)):
        table[a, b] = table[b, a] = cosine
    first = facility_location(table, 3).tolist()
    table[1, 2] = table[2, 1] = 0.9 + 1e-9
    table[2, 2] += 1e-9
    assert facility_location(table, 3).tolist() == first


def test_pairs_are_counted_once_a_destination() -> None:
    assert scanned_pairs(regions=4, size=16, count=8) == 4 * 16 * 16 * 8
