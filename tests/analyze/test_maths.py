"""Sub-bands against PyWavelets, redundancy against plain loops."""

from __future__ import annotations

import math

import numpy as np
import pytest
import pywt
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from sdtm_fx.analyze import maths
from sdtm_fx.errors import SdtmFxError
from sdtm_fx.windows import Windows

sides = st.integers(2, 9)
seeds = st.integers(0, 2**16)
quick = settings(max_examples=30, deadline=None)


def draw(*shape: int, seed: int) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


@quick
@given(sides, sides, st.sampled_from(["haar", "db2", "db4", "sym3", "coif1"]), seeds)
def test_the_transform_is_that_of_pywavelets(height: int, width: int, name: str, seed: int) -> None:
    x = draw(2, height, width, seed=seed)
    ll, (lh, hl, hh) = pywt.dwt2(x.numpy(), name)
    for ours, theirs in zip(maths.dwt2(x, name), (ll, lh, hl, hh), strict=True):
        np.testing.assert_allclose(ours.numpy(), theirs, atol=2e-5)


@quick
@given(st.integers(1, 5), st.integers(1, 5), st.integers(1, 4), seeds)
def test_haar_keeps_the_energy_of_even_grids(rows: int, columns: int, width: int, seed: int) -> None:
    grid = (2 * rows, 2 * columns)
    tokens = draw(3, grid[0] * grid[1], width, seed=seed) + 2
    norms = maths.band_norms(tokens, grid)
    energy = tokens.square().sum(dim=(1, 2))
    torch.testing.assert_close(norms[:, :4].square().sum(dim=1), energy, rtol=1e-4, atol=1e-4)
    mean = tokens.mean(dim=1).square().sum(dim=1) * grid[0] * grid[1]
    torch.testing.assert_close(norms[:, 4].square(), norms[:, 0].square() - mean, rtol=1e-3, atol=1e-3)


def test_a_horizontal_edge_is_lh_and_a_vertical_one_hl() -> None:
    rows = torch.tensor([1.0, -1.0]).repeat(2)[:, None].expand(4, 6)
    columns = torch.tensor([1.0, -1.0]).repeat(3)[None].expand(4, 6)
    for picture, band in ((rows, 1), (columns, 2), (rows * columns, 3), (torch.ones(4, 6), 0)):
        norms = maths.band_norms(picture.reshape(1, 24, 1), (4, 6))[0, :4]
        assert norms[band] == pytest.approx(math.sqrt(24))
        assert norms.sum() == pytest.approx(math.sqrt(24))


def test_a_constant_added_moves_ll_alone() -> None:
    tokens = draw(1, 35, 3, seed=1)
    plain, shifted = (maths.band_norms(t, (5, 7), "db2") for t in (tokens, tokens + 100))
    torch.testing.assert_close(plain[:, 1:], shifted[:, 1:], rtol=1e-3, atol=1e-3)
    assert shifted[0, 0] > 10 * plain[0, 0]


@settings(max_examples=12, deadline=None)
@given(st.integers(2, 6), st.integers(2, 6), st.integers(1, 3), st.integers(1, 200), seeds)
def test_nearest_tokens_are_those_of_a_loop(
    height: int, width: int, channels: int, pairs: int, seed: int
) -> None:
    grid, count = (height, width), height * width
    tokens = draw(2, count, channels, seed=seed).round()  # rounded: ties and zero tokens are common
    near = maths.nearest_tokens(tokens, grid, pairs=pairs)
    unit = torch.nn.functional.normalize(tokens, dim=-1)
    for sample in range(2):
        cosine = unit[sample] @ unit[sample].T
        for token in range(count):
            others = [o for o in range(count) if o != token]
            best = max(float(cosine[token, o]) for o in others)
            assert near.similarity[sample, token] == pytest.approx(best, abs=1e-5)
            row, column = divmod(token, width)
            away = [
                math.hypot(row - o // width, column - o % width)
                for o in others
                if float(cosine[token, o]) > best - 1e-5
            ]
            distance = float(near.distance[sample, token])
            assert min(away) - 1e-4 <= distance
            assert any(distance == pytest.approx(a, abs=1e-4) for a in away)


def test_of_equal_tokens_the_nearest_counts() -> None:
    near = maths.nearest_tokens(torch.ones(1, 12, 2), (3, 4))
    torch.testing.assert_close(near.distance, torch.ones(1, 12))
    torch.testing.assert_close(near.similarity, torch.ones(1, 12))


@quick
@given(sides, sides, st.integers(2, 4), seeds)
def test_windows_are_no_better_than_the_whole_grid(height: int, width: int, edge: int, seed: int) -> None:
    if edge > min(height, width):
        return
    tokens, windows = draw(2, height * width, 3, seed=seed), Windows((height, width), (edge, edge))
    near = maths.nearest_tokens(tokens, (height, width))
    inside, gap = maths.window_gap(tokens, near, windows)
    assert (gap >= -1e-5).all()
    torch.testing.assert_close(inside + gap, windows.split(near.similarity).mean(dim=(1, 2)))
    unit = torch.nn.functional.normalize(tokens[0], dim=-1)
    best = maths.best_in_windows(tokens, windows)[0]
    for window, members in enumerate(windows.tokens(tokens.device).tolist()):
        for place, token in enumerate(members):
            expected = max(float(unit[token] @ unit[o]) for o in members if o != token)
            assert best[window, place] == pytest.approx(expected, abs=1e-5)


def test_one_window_as_large_as_the_grid_loses_nothing() -> None:
    tokens = draw(1, 16, 4, seed=3)
    _, gap = maths.window_gap(tokens, maths.nearest_tokens(tokens, (4, 4)), Windows((4, 4), (4, 4)))
    assert gap.abs().max() < 1e-6


@quick
@given(sides, sides, seeds)
def test_quantiles_rise_between_the_extremes_of_ssm(height: int, width: int, seed: int) -> None:
    windows = Windows((height, width), (2, 2))
    found = maths.window_quantiles(draw(2, height * width, 3, seed=seed), windows, 9)
    assert found.shape == (2, 9)
    assert (found.diff(dim=1) >= 0).all()
    scores = maths.window_similarity(draw(2, height * width, 3, seed=seed), windows)
    torch.testing.assert_close(found[:, -1], scores.amax(dim=1))


@quick
@given(sides, sides)
def test_random_distance_is_the_mean_of_all_pairs(height: int, width: int) -> None:
    numbers = torch.arange(height * width)
    away = maths.grid_distance(numbers[:, None], numbers[None], width).double()
    count = height * width
    assert maths.random_distance((height, width)) == pytest.approx(
        float(away.sum()) / (count * (count - 1)), 1e-5
    )


@pytest.mark.parametrize("name", ["haa", "bior2.2", "morl"])
def test_a_wavelet_that_is_unknown_or_not_orthogonal_is_refused(name: str) -> None:
    with pytest.raises(SdtmFxError, match=rf"no orthogonal wavelet '{name}'.*accepted: .*haar"):
        maths.wavelet(name)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_it_runs_on_cuda_and_agrees() -> None:
    tokens, grid = draw(2, 24 * 17, 32, seed=5), (24, 17)
    on_cpu, on_gpu = (maths.nearest_tokens(t, grid, pairs=5000) for t in (tokens, tokens.cuda()))
    torch.testing.assert_close(on_gpu.similarity.cpu(), on_cpu.similarity, rtol=1e-4, atol=1e-4)
    assert (on_gpu.distance.cpu() == on_cpu.distance).float().mean() > 0.99
    torch.testing.assert_close(
        maths.band_norms(tokens.cuda(), grid, "db2").cpu(), maths.band_norms(tokens, grid, "db2")
    )
    windows = Windows(grid, (4, 4))
    torch.testing.assert_close(
        maths.best_in_windows(tokens.cuda(), windows).cpu(), maths.best_in_windows(tokens, windows),
        rtol=1e-4, atol=1e-4,
    )  # fmt: skip
