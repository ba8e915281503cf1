"""Stored outputs: dense ones, and those of single tokens."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from sdtm_fx.runtime.feature import Feature
from sdtm_fx.runtime.state import BranchState

CPU = torch.device("cpu")


def at(step: int) -> torch.Tensor:
    return torch.tensor(float(step))


def test_order_zero_keeps_the_last_value_of_every_token() -> None:
    feature = Feature.of(torch.zeros(2, 3, 1), 0, None)
    place = feature.newer
    feature.update(torch.ones(2, 3, 1), torch.tensor([[True, False, False], [False, True, True]]))
    assert feature.newer[..., 0].tolist() == [[1, 0, 0], [0, 1, 1]]
    feature.update(torch.full((2, 3, 1), 2.0), torch.tensor([[False, True, False]]))  # one plan for the batch
    assert feature.newer[..., 0].tolist() == [[1, 2, 0], [0, 2, 1]]
    assert feature.newer is place
    assert feature.forecast(None, None) is place
    feature.record(torch.full((2, 3, 1), 3.0))
    assert feature.newer.unique().tolist() == [3]


def test_stored_values_have_no_history() -> None:
    feature = Feature.of(torch.ones(1, 2, 1, requires_grad=True) * 2, 1, at(0))
    feature.update(torch.ones(1, 2, 1, requires_grad=True) * 3, torch.tensor([[True, False]]), at(1))
    assert not any(tensor.requires_grad for tensor in feature.tensors().values())


@settings(max_examples=40, deadline=None)
@given(st.data())
def test_every_token_follows_the_line_through_its_last_two_values(data: st.DataObject) -> None:
    """Values lie on a parabola, so that it matters which two steps a line is drawn through."""
    rows, tokens = 2, 4
    every = data.draw(st.integers(2, 4))
    steps = data.draw(st.integers(3, 9))
    state, feature = BranchState(), None
    history: dict[tuple[int, int], list[int]] = {(r, n): [] for r in range(rows) for n in range(tokens)}

    def truth(row: int, token: int, step: int) -> float:
        return float((row + 1) * step * step + token)

    for step in range(steps):
        state.set_now(step, CPU)
        assert state.now is not None
        value = torch.tensor([[[truth(r, n, step)] for n in range(tokens)] for r in range(rows)])
        if step % every == 0:
            if state.set_refreshed(step):
                state.shift()
            if feature is None:
                feature = state.features[0, "ff"] = Feature.of(value, 1, state.now)
            else:
                feature.record(value, state.now)
            computed = torch.ones(rows, tokens, dtype=torch.bool)
        else:
            assert feature is not None
            forecast = feature.forecast(None, state.now)[..., 0]
            for (row, token), known in history.items():
                newer, older = known[-1], known[max(len(known) - 2, 0)]
                expected = truth(row, token, newer)
                if newer > older:
                    rise = (expected - truth(row, token, older)) / (newer - older)
                    expected += rise * (step - newer)
                assert float(forecast[row, token]) == pytest.approx(expected, rel=1e-4, abs=1e-4)
            mask = data.draw(st.lists(st.booleans(), min_size=rows * tokens, max_size=rows * tokens))
            computed = torch.tensor(mask).view(rows, tokens)
            for _ in range(
                data.draw(st.integers(1, 2))
            ):  # a second evaluation of the step counts as the first
                feature.update(torch.where(computed[..., None], value, torch.nan), computed, state.now)
        for (row, token), known in history.items():
            if computed[row, token]:
                known.append(step)


def test_a_first_value_that_was_laid_out_draws_no_line() -> None:
    feature = Feature.empty(torch.Size((1, 2, 3)), torch.float32, CPU, 1, True)
    assert sorted(feature.tensors()) == ["newer", "newer_at", "older", "older_at"]
    state = BranchState(features={(0, "ff"): feature}, unsettled=[feature])
    feature.record(torch.full((1, 2, 3), 5.0), at(4))
    state.settle()
    assert feature.forecast(None, at(9)).unique().tolist() == [5]
    assert feature.older_at is not None
    assert feature.older_at.tolist() == [[4, 4]]


def test_what_is_laid_out_is_what_the_recipe_asks_for() -> None:
    shape = torch.Size((1, 2, 3))
    assert sorted(Feature.empty(shape, torch.bfloat16, CPU, 0, False).tensors()) == ["newer"]
    dense = Feature.empty(shape, torch.bfloat16, CPU, 1, False)
    assert sorted(dense.tensors()) == ["newer", "older"]
    assert {t.dtype for t in dense.tensors().values()} == {torch.bfloat16}
    dated = Feature.empty(shape, torch.bfloat16, CPU, 1, True)
    assert dated.newer_at is not None
    assert dated.newer_at.dtype == torch.float32
    state = BranchState(features={(0, "ff"): dated})
    assert state.bytes()["features"] == 2 * 6 * 2 + 2 * 2 * 4


def test_the_step_stays_one_tensor() -> None:
    state = BranchState()
    state.set_now(3, CPU)
    place = state.now
    state.set_now(5, CPU)
    assert state.now is place
    assert float(place) == 5  # type: ignore[arg-type]
