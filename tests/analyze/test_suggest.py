"""The heuristic, on curves whose answer is known."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import sdtm_fx
from sdtm_fx.analyze import Analysis, Features, Settings, suggest
from sdtm_fx.analyze.report import sentences
from sdtm_fx.analyze.suggest import split, spread_ratio
from sdtm_fx.errors import SdtmFxError

quick = settings(max_examples=40, deadline=None)


def features(detail: Any, similarity: Any, levels: int = 9) -> Features:
    """Two images and three blocks that share the curves."""
    steps = len(detail)
    wide = np.ones((2, 1, 3))
    share, alike = (np.asarray(x)[None, :, None] * wide for x in (detail, similarity))
    norms = np.stack([np.ones_like(share), np.sqrt(share), 0 * share, 0 * share, np.sqrt(1 - share)], -1)
    return Features(
        norms=norms,
        similarity=alike,
        distance=np.ones_like(alike),
        inside=np.stack([alike - 0.2, alike - 0.1], -1),
        gap=np.stack([0 * alike + 0.2, 0 * alike + 0.1], -1),
        quantiles=alike[..., None] + np.linspace(-0.5, 0.5, levels) * np.ones((2, steps, 3, 1)),
        maps=None,
    )


def analysis(
    detail: Any, similarity: Any, recipe: str = "sd3-medium", grid: tuple[int, int] = (8, 8)
) -> Analysis:
    found = features(detail, similarity)
    return Analysis("SomeModel", recipe, ("b.0", "b.1", "b.2"), grid, Settings(), found, found)


STRUCTURE_THEN_DETAIL = ([0.2] * 8 + [0.6] * 12, [0.9] * 8 + [0.5] * 12)


@quick
@given(st.integers(1, 9), st.integers(1, 9), st.booleans(), st.floats(0.01, 5))
def test_a_step_is_split_where_it_is(before: int, after: int, rising: bool, height: float) -> None:
    curve = np.array([1.0] * before + [1.0 + (height if rising else -height)] * after)
    found = split(curve, rising=rising, first=3)
    assert found is not None
    assert (found.step, found.explained) == (before + 3, pytest.approx(1))
    assert split(curve, rising=not rising) is None


@quick
@given(st.lists(st.floats(-3, 3), min_size=2, max_size=12), st.booleans())
def test_no_other_split_explains_more(values: list[float], rising: bool) -> None:
    curve = np.array(values)
    found = split(curve, rising=rising)
    total = float(((curve - curve.mean()) ** 2).sum())
    if total < 1e-9:
        return
    gains = {}
    for place in range(1, len(curve)):
        left, right = curve[:place], curve[place:]
        within = ((left - left.mean()) ** 2).sum() + ((right - right.mean()) ** 2).sum()
        if right.mean() != left.mean() and (right.mean() > left.mean()) == rising:
            gains[place] = 1 - within / total
    if found is None:
        assert not gains
    else:
        assert found.explained == pytest.approx(max(gains.values()), abs=1e-6)


def test_structure_then_detail_gives_its_boundary() -> None:
    found = suggest(analysis(*STRUCTURE_THEN_DETAIL))
    assert found.by_detail is not None
    assert found.by_redundancy is not None
    assert (found.by_detail.step, found.by_redundancy.step, found.until) == (8, 8, pytest.approx(0.4))
    assert found.structure_ratio > found.detail_ratio
    assert found.windows[0].before == pytest.approx(0.3 / 0.1)  # cosine 0.9 anywhere, 0.7 in windows of 2
    assert found.windows[1].after == pytest.approx(0.6 / 0.5)


def test_first_and_last_step_do_not_move_the_boundary() -> None:
    detail, similarity = (list(curve) for curve in STRUCTURE_THEN_DETAIL)
    detail[0], detail[-1], similarity[0], similarity[-1] = 0.9, 0.0, 0.0, 1.0
    assert suggest(analysis(detail, similarity)).until == pytest.approx(0.4)


def test_features_that_move_the_other_way_give_none_and_it_says_so() -> None:
    backwards = analysis(*(list(reversed(curve)) for curve in STRUCTURE_THEN_DETAIL))
    found = suggest(backwards)
    assert (found.by_detail, found.by_redundancy, found.until) == (None, None, None)
    assert found.as_recipe("sd3-medium") is None
    text = "\n".join(sentences(backwards, found))
    assert "nowhere, the detail share moves the other way" in text
    assert "no stage boundary" in text


def test_it_says_how_far_it_hangs_on_the_images() -> None:
    steady = analysis(*STRUCTURE_THEN_DETAIL)
    assert suggest(steady).left_out == (pytest.approx(0.4), pytest.approx(0.4))
    norms, similarity = steady.update.norms.copy(), steady.update.similarity.copy()
    norms[1], similarity[1] = norms[1][::-1], similarity[1][::-1]  # the second image goes the other way
    mixed = replace(steady, update=replace(steady.update, norms=norms, similarity=similarity))
    found = suggest(mixed)
    assert found.left_out == (None, pytest.approx(0.4))
    assert "  the same without one of the images: 0.40, none" in sentences(mixed, found)


def test_a_weak_split_does_not_count() -> None:
    noise = [0.3, 0.7] * 9
    found = suggest(analysis(noise, STRUCTURE_THEN_DETAIL[1][:18]))
    assert found.by_detail is not None
    assert not found.by_detail.counts
    assert found.until == pytest.approx(8 / 18)


@quick
@given(st.floats(0.05, 0.7), st.lists(st.floats(0.1, 0.9), min_size=4, max_size=12))
def test_ratios_have_the_mean_that_was_asked_for(ratio: float, similarity: list[float]) -> None:
    smooth = analysis([0.5] * len(similarity), similarity)
    ratios = spread_ratio(smooth, ratio)
    assert ((ratios >= 0) & (ratios <= 0.75)).all()
    assert ratios.mean() == pytest.approx(ratio, abs=0.75 / 9 + 1e-9)  # one of nine quantiles
    order = np.argsort(similarity)
    assert (np.diff(ratios[order]) >= -1e-9).all()  # more alike, more removed


@pytest.mark.parametrize("base", ["sd3-medium-windows", "toy-sd3-merge", "flux.1-dev", "paper/sd3-medium"])
def test_the_suggestion_is_a_valid_recipe(base: str) -> None:
    data = suggest(analysis(*STRUCTURE_THEN_DETAIL)).as_recipe(base)
    assert data is not None
    recipe = sdtm_fx.load_recipe(data)
    assert recipe.stages[0].until == 0.4
    assert recipe.stages[0].ratio is not None
    assert recipe.stages[0].ratio.start == data["stages"][recipe.stages[0].name]["ratio"]["start"]
    assert all((stage.ratio is not None) == stage.method.merges for stage in recipe.stages)


def test_stages_that_skip_get_no_ratio() -> None:
    data = suggest(analysis(*STRUCTURE_THEN_DETAIL)).as_recipe("sd3-medium-windows")
    assert data is not None
    assert data["stages"].keys() == {"structure"}
    assert sdtm_fx.load_recipe(data).stages[1].ratio is None


@pytest.mark.parametrize(
    ("base", "extended"),
    [
        ("sd3-medium", "sd3-medium-merge"),
        ("sd3.5-large", "sd3.5-large-windows"),
        ("sd3-medium-merge", "sd3-medium-merge"),
    ],
)
def test_a_recipe_that_merges_nowhere_stands_for_its_sibling(base: str, extended: str) -> None:
    data = suggest(analysis(*STRUCTURE_THEN_DETAIL)).as_recipe(base)
    assert data is not None
    assert (data["extends"], data["name"]) == (extended, f"{extended}-suggested")


def test_a_file_that_merges_nowhere_is_not_extended(tmp_path: Path) -> None:
    mine = tmp_path / "mine.yaml"
    mine.write_text("version: 1\nname: mine\nextends: sd3-medium\n", encoding="utf-8")
    assert suggest(analysis(*STRUCTURE_THEN_DETAIL)).as_recipe(str(mine)) is None
    skips = [
        f"{{name: {name}, until: {end}, sites: [ff], method: {{name: skip}}}}"
        for name, end in (("early", 0.5), ("late", 1.0))
    ]
    two = f"version: 1\nname: mine\nextends: sd3-medium\nstages: [{', '.join(skips)}]\n"
    mine.write_text(two, encoding="utf-8")
    assert suggest(analysis(*STRUCTURE_THEN_DETAIL)).as_recipe(str(mine)) is None


def test_a_recipe_that_is_not_shipped_is_not_extended() -> None:
    assert suggest(analysis(*STRUCTURE_THEN_DETAIL)).as_recipe("mine") is None


def test_a_recipe_in_a_file_is_extended_as_seen_from_the_folder(tmp_path: Path) -> None:
    mine = tmp_path / "mine.yaml"
    mine.write_text("version: 1\nname: own/mine\nextends: toy-sd3-windows\n", encoding="utf-8")
    data = suggest(analysis(*STRUCTURE_THEN_DETAIL)).as_recipe(str(mine), tmp_path / "out")
    assert data is not None
    assert (data["name"], data["extends"]) == ("mine-suggested", "../mine.yaml")


@pytest.mark.parametrize("ratio", [0.0, 0.75, 0.9])
def test_a_ratio_out_of_reach_is_refused(ratio: float) -> None:
    with pytest.raises(
        SdtmFxError, match=r"ratio .*; accepted: above 0 and below 0\.75, .* windows of 2 x 2"
    ):
        suggest(analysis(*STRUCTURE_THEN_DETAIL), ratio=ratio)


def test_odd_grids_reach_less() -> None:
    odd = replace(analysis(*STRUCTURE_THEN_DETAIL), grid=(7, 7))
    with pytest.raises(SdtmFxError, match=r"below 0\.551"):  # 9 windows, 3 of 4 tokens each, of 49 tokens
        suggest(odd, ratio=0.6)


def test_three_steps_are_too_few() -> None:
    with pytest.raises(SdtmFxError, match="found 3 steps; a suggestion needs at least 4"):
        suggest(analysis([0.1, 0.2, 0.3], [0.9, 0.8, 0.7]))
