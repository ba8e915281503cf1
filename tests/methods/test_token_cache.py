"""`token_cache`: who is computed, and that those alone are."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from sdtm_fx.kept_plan import KeptPlan, plan_of_kept
from sdtm_fx.methods import TokenCache, TokenView
from sdtm_fx.methods.token_cache import best_of_windows

GRID, TOKENS = (6, 8), 48


def view(seed: int = 0, grid: tuple[int, int] = GRID) -> TokenView:
    draw = torch.Generator().manual_seed(seed)
    tokens = grid[0] * grid[1]
    return TokenView(
        torch.randn(2, tokens, 4, generator=draw),
        grid,
        ages=torch.randint(0, 4, (2, tokens), generator=draw, dtype=torch.int32),
        attention=torch.rand(2, tokens, generator=draw),
        salt=seed,
    )


def kept_by_hand(given: TokenView, method: TokenCache, kept: int) -> list[list[int]]:
    """The formula of the docstring, token by token."""
    assert given.attention is not None
    assert given.ages is not None
    rows = []
    for attention, ages in zip(given.attention.tolist(), given.ages.tolist(), strict=True):
        length = sum(value * value for value in attention) ** 0.5
        score = [
            a / length + method.age_weight * n / method.interval for a, n in zip(attention, ages, strict=True)
        ]
        windows: dict[tuple[int, int], list[int]] = {}
        for token in range(len(score)):
            row, column = divmod(token, given.grid[1])
            windows.setdefault((row // method.window[0], column // method.window[1]), []).append(token)
        for inside in windows.values():
            score[max(inside, key=lambda token: score[token])] *= 1 + method.bonus
        rows.append(sorted(sorted(range(len(score)), key=lambda token: -score[token])[:kept]))
    return rows


@pytest.mark.parametrize(
    "method",
    [
        TokenCache(),
        TokenCache(age_weight=1.0, interval=6),
        TokenCache(bonus=0.0),
        TokenCache(bonus=3.0, window=(4, 3)),
    ],
    ids=repr,
)
@pytest.mark.parametrize("grid", [GRID, (5, 7), (1, 9), (3, 2)])
def test_who_is_computed_follows_the_formula(method: TokenCache, grid: tuple[int, int]) -> None:
    given = view(3, grid)
    kept = max(1, grid[0] * grid[1] // 3)
    plan = method.plan(given, grid[0] * grid[1] - kept)
    assert plan.positions.tolist() == kept_by_hand(given, method, kept)


def test_the_scale_of_the_attention_does_not_matter_and_stale_tokens_come_first() -> None:
    given = view()
    assert given.attention is not None
    tiny = TokenView(given.metric, GRID, given.ages, given.attention * 1e-3)
    assert torch.equal(TokenCache().plan(given, 30).positions, TokenCache().plan(tiny, 30).positions)
    ages = torch.zeros(2, TOKENS, dtype=torch.int32)
    ages[0, 7], ages[1, 21] = 5, 5
    old = TokenView(given.metric, GRID, ages, given.attention)
    plan = TokenCache().plan(old, TOKENS - 1)
    assert plan.positions.tolist() == [[7], [21]]
    young = TokenCache(age_weight=0.0).plan(old, TOKENS - 1)
    assert young.positions.tolist() != [[7], [21]]


def test_with_equal_attention_every_token_has_its_turn() -> None:
    ages = torch.zeros(1, TOKENS, dtype=torch.int32)
    seen: set[int] = set()
    for _ in range(7):
        given = TokenView(torch.zeros(1, TOKENS, 2), GRID, ages, torch.ones(1, TOKENS))
        plan = TokenCache(age_weight=2.0).plan(given, TOKENS - 12)
        ages = plan.next_ages(ages)
        seen |= set(plan.positions[0].tolist())
    assert seen == set(range(TOKENS))


def test_a_large_bonus_computes_one_token_of_every_window() -> None:
    plan = TokenCache(bonus=100.0).plan(view(4), TOKENS - 12)
    for row in plan.positions.tolist():
        windows = {(token // 8 // 2, token % 8 // 2) for token in row}
        assert len(windows) == 12


def test_random_ranks_are_drawn_by_hash_and_alike_in_the_batch() -> None:
    method = TokenCache(rank="random", age_weight=0.0)
    blind = TokenView(torch.randn(3, TOKENS, 4), GRID, salt=1)
    plan = method.plan(blind, 30)
    assert plan.positions.tolist() == [plan.positions[0].tolist()] * 3
    assert torch.equal(plan.positions, method.plan(blind, 30).positions)
    other = TokenView(blind.metric, GRID, salt=2)
    assert not torch.equal(plan.positions, method.plan(other, 30).positions)
    score = method.score(blind)
    assert 0 <= float(score.min()) < 0.1 < 0.9 < float(score.max()) < 1.6


def test_what_is_read_follows_from_the_options() -> None:
    assert TokenCache().wants() == {"attention", "ages"}
    assert TokenCache(age_weight=0.0).wants() == {"attention"}
    assert TokenCache(rank="random").wants() == {"ages"}
    assert TokenCache(rank="random", age_weight=0.0).wants() == frozenset()
    assert (TokenCache().probes(), TokenCache(probe_queries=None).probes()) == (256, None)
    assert TokenCache(rank="random").reads_attention() is False


def test_the_best_of_a_window_is_the_first_of_equals_and_edges_have_windows_too() -> None:
    score = torch.tensor([[0.0, 0.0, 3.0, 1.0, 1.0, 2.0, 5.0, 0.0, 5.0]])  # 3 x 3
    best = best_of_windows(score, (3, 3), (2, 2))
    assert best.int().tolist() == [[0, 0, 1, 1, 0, 0, 1, 0, 1]]
    assert best_of_windows(torch.zeros(1, 6), (2, 3), (2, 2)).int().tolist() == [[1, 0, 1, 0, 0, 0]]


# -- plans of kept tokens ----------------------------------------------------------------------------


@settings(max_examples=25, deadline=None)
@given(st.data())
def test_kept_tokens_are_computed_alone_and_no_other_is(data: st.DataObject) -> None:
    tokens = data.draw(st.integers(1, 30))
    number = data.draw(st.integers(1, tokens))
    rows = [
        sorted(data.draw(st.permutations(range(tokens)))[:number])
        for _ in range(data.draw(st.integers(1, 3)))
    ]
    plan = plan_of_kept(torch.tensor(rows), tokens)
    for made, prefix in ((plan, 0), (plan.placed(4), 4)):
        assert isinstance(made, KeptPlan)
        x = torch.randn(len(rows), prefix + tokens, 3)
        for row, kept in enumerate(rows):
            alone = [*range(prefix), *(prefix + token for token in kept)]
            assert torch.equal(made.merge(x)[row], x[row, alone])
            assert torch.equal(made.unmerge(made.merge(x))[row, alone], x[row, alone])
            assert made.merged_mask[row].logical_not().nonzero().flatten().tolist() == alone
    again = plan.with_tensors(t.clone() for t in plan.tensors())
    assert isinstance(again, KeptPlan)
    assert torch.equal(again.repeat(2).merged_mask, plan.merged_mask.repeat(2, 1))


def test_ages_count_the_steps_since_a_token_was_computed() -> None:
    plan = plan_of_kept(torch.tensor([[1, 4]]), 6)
    ages = plan.next_ages(torch.tensor([[0, 3, 1, 2, 0, 0]]))
    assert ages.tolist() == [[1, 0, 2, 3, 0, 1]]
    assert plan.reduced_by(None) is plan.reduced_by("prune") is plan
