"""The page of the demonstration."""

from __future__ import annotations

import math
import re
from dataclasses import replace
from html.parser import HTMLParser

import pytest
import torch

from sdtm_fx.demo import tasks
from sdtm_fx.demo.compare import Comparison, compare
from sdtm_fx.demo.page import bars, gallery, numbers, render_page, strips
from sdtm_fx.demo.pictures import data_uri, difference, merged_share, shaded, shades
from sdtm_fx.demo.tasks import predicted_images

STEPS = 6
RECIPES = ("toy-sd3-merge", "paper/sd3-medium", "sd3-medium")
VOID = {"meta", "img", "br", "input"}
SHAPES = {"path", "image", "rect", "line"}


class Reader(HTMLParser):
    """Checks that tags close in order, and collects addresses."""

    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []
        self.addresses: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.addresses += [value or "" for name, value in attrs if name in ("src", "href")]
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        assert tag in SHAPES
        self.addresses += [value or "" for name, value in attrs if name in ("src", "href")]

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag


@pytest.fixture(scope="module")
def comparison() -> Comparison:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    compared = compare(tasks.trained("sd3", STEPS, 16, 1, RECIPES))
    torch.set_num_threads(threads)
    return compared


@pytest.fixture(scope="module")
def page(comparison: Comparison) -> str:
    unseen = replace(comparison, task=replace(comparison.task, title="another", watch=None))
    unseen = replace(unseen, outcomes=tuple(replace(o, films=()) for o in comparison.outcomes))
    return render_page([comparison, unseen])


def test_films_show_the_images_that_were_drawn_without_them(comparison: Comparison) -> None:
    merged, paper, forecast = comparison.outcomes
    assert len(merged.films) == len(paper.films) == 1
    assert forecast.films == ()  # nothing merges there
    for outcome in (merged, paper):
        assert outcome.films_agree
        for film, image in zip(outcome.films, outcome.images, strict=True):
            assert len(film.predictions) == STEPS
            assert film.record.at(action="merged")
            torch.testing.assert_close(film.predictions[-1], image, atol=1e-5, rtol=0)


def test_it_is_one_well_formed_file_that_needs_nothing_else(page: str) -> None:
    reader = Reader()
    reader.feed(page)
    reader.close()
    assert reader.open == []
    assert len(reader.addresses) > 30
    assert all(address.startswith("data:image/png;base64,") for address in reader.addresses)
    assert not re.search(r"https?:|url\(|@import|<link|<iframe", page)
    assert len(page.encode()) < 2_000_000


def test_without_scripts_all_steps_are_there(page: str) -> None:
    still = re.sub(r"<script>.*</script>", "", page, flags=re.DOTALL)
    for step in range(STEPS):
        assert still.count(f"<b>step {step}</b>") == 2  # two recipes merge
    assert still.count('<div class="viewer" hidden>') == 2
    assert 'class="slot"' in still
    assert still.count("<h3>What merged at each step</h3>") == still.count("<h3>Images</h3>") == 1
    assert still.count("<h3>Numbers</h3>") == 2
    assert "Times at this size mean nothing" in still


def test_text_is_escaped(comparison: Comparison) -> None:
    task = replace(comparison.task, captions=("<b>&",))
    page = render_page([replace(comparison, task=task)])
    assert "<b>&<" not in page
    assert "&lt;b&gt;&amp;" in page


def test_bars_are_the_costs_of_the_steps(comparison: Comparison) -> None:
    for outcome in comparison.outcomes:
        found, e = bars(outcome), outcome.explanation
        assert [bar.step for bar in found] == list(range(STEPS))
        assert sum(bar.share for bar in found) / STEPS == pytest.approx(e.mean.total / e.dense.total)
    merged, paper, forecast = (bars(outcome) for outcome in comparison.outcomes)
    assert merged[0].label == "dense, stored"
    assert merged[2].label == "detail: 70% removed"
    assert [bar.tone for bar in merged] == ["refresh", "refresh", "stage0", "refresh", "stage0", "dense"]
    assert {bar.stage for bar in paper} == {"structure", "detail"}
    assert "all: all forecast" in {bar.label for bar in forecast}


def test_the_table_holds_the_numbers(comparison: Comparison) -> None:
    rows = numbers(comparison)
    assert [row[0] for row in rows] == ["dense", *RECIPES]
    assert {len(row) for row in rows} == {10}
    for row, outcome in zip(rows[1:], comparison.outcomes, strict=True):
        assert row[3] == f"{outcome.explanation.theoretical_speedup:.2f}x"
        assert row[4] == f"{outcome.mean_psnr:.1f} dB"
        assert row[9] == "yes"
    equal = replace(comparison.outcomes[0], psnr=(math.inf,), restored=False)
    assert numbers(replace(comparison, outcomes=(equal,)))[1][4:10:5] == ["equal", "NO"]


def test_frames_tell_what_each_step_did(comparison: Comparison) -> None:
    merged, paper = strips(comparison)
    assert merged.caption == comparison.task.captions[0]
    assert [frame.note for frame in merged.frames[:2]] == ["dense, stored"] * 2
    assert merged.frames[2].note == "detail: 64 → 19"
    assert [frame.map is None for frame in merged.frames[:3]] == [True, True, False]
    assert paper.frames[-1].note.endswith(", ff only")
    assert [len(frames) for _, frames in paper.blocks] == [6, 6]  # every block, in each stage


def test_the_gallery_says_how_much_was_merged(comparison: Comparison) -> None:
    for case, (caption, _, cells) in enumerate(gallery(comparison)):
        assert caption == comparison.task.captions[case]
        assert cells[2].merged is None
        for cell, outcome in zip(cells[:2], comparison.outcomes[:2], strict=True):
            share = merged_share(outcome.films[case])
            assert cell.merged is not None
            assert cell.merged_mean == f"{float(share.mean()):.0%}"
            told = [
                s.merged_mask[-1].float().mean() if s.merged_mask is not None else 0.0
                for s in outcome.films[case].record
            ]
            assert float(share.mean()) == pytest.approx(sum(map(float, told)) / len(told))


def test_pictures() -> None:
    image = torch.rand(3, 4, 6, generator=torch.Generator().manual_seed(0))
    assert torch.equal(difference(image, image), torch.full_like(image, 0.5))
    assert float(difference(image + 0.1, image).mean()) == pytest.approx(0.7, abs=1e-5)
    assert data_uri(image).startswith("data:image/png;base64,")
    dark, light = shaded(torch.tensor([[0.0, 1.0]])).mean(0).flatten().tolist()
    assert dark < 0.1 < 0.7 < light
    assert shades().count("#") == 9


def test_predictions_of_a_straight_path_are_its_end() -> None:
    generator = torch.Generator().manual_seed(0)
    image, noise = (torch.randn(1, 3, 4, 4, generator=generator) for _ in range(2))
    sigmas = torch.tensor([1.0, 0.7, 0.2, 0.0])
    latents = [(1 - s) * image + s * noise for s in sigmas]
    for prediction in predicted_images(latents, sigmas):
        torch.testing.assert_close(prediction, image, atol=1e-5, rtol=0)
