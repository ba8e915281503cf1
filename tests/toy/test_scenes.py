from __future__ import annotations

import dataclasses
import itertools

import pytest
import torch

from sdtm_fx.errors import SdtmFxError
from sdtm_fx.toy.scenes import (
    BACKGROUNDS,
    COLOURS,
    SHAPES,
    TEXTURES,
    Scene,
    contrast,
    render,
    sample_scene,
    scenes,
)

RED_CIRCLE = Scene("circle", "red", "large", "centre", "plain", "plain", ("blue",))


def value(colour: str) -> torch.Tensor:
    return torch.tensor(COLOURS[colour]) * 2 - 1


def test_sampling_and_rendering_depend_on_the_seed_alone() -> None:
    state = torch.random.get_rng_state()
    for seed in range(12):
        assert sample_scene(seed) == sample_scene(seed)
        assert torch.equal(render(sample_scene(seed), 24, 40), render(sample_scene(seed), 24, 40))
    assert torch.equal(state, torch.random.get_rng_state())
    assert len({sample_scene(seed) for seed in range(50)}) == 50


def test_the_stream_of_scenes_follows_the_seeds() -> None:
    assert list(itertools.islice(scenes(7), 3)) == [sample_scene(7), sample_scene(8), sample_scene(9)]


def test_every_word_occurs_and_shape_differs_from_its_background() -> None:
    drawn = [sample_scene(seed) for seed in range(400)]
    assert {scene.shape for scene in drawn} == set(SHAPES)
    assert {scene.texture for scene in drawn} == set(TEXTURES)
    assert {scene.background for scene in drawn} == set(BACKGROUNDS)
    assert all(scene.colour not in scene.background_colours for scene in drawn)


@pytest.mark.parametrize(("height", "width"), [(32, 32), (24, 40), (40, 24), (33, 47), (64, 64), (1, 1)])
def test_any_height_and_width_render_within_range(height: int, width: int) -> None:
    for seed in range(20):
        image = render(sample_scene(seed), height, width)
        assert image.shape == (3, height, width)
        assert image.dtype == torch.float32
        assert image.min() >= -1
        assert image.max() <= 1


def test_colours_are_where_the_caption_says() -> None:
    image = render(RED_CIRCLE, 32, 48)
    assert torch.allclose(image[:, 16, 24], value("red"))
    assert torch.allclose(image[:, 2, 2], value("blue"))
    corner = render(dataclasses.replace(RED_CIRCLE, position="upper right", size="medium"), 32, 48)
    assert torch.allclose(corner[:, 8, 36], value("red"))
    assert torch.allclose(corner[:, 16, 12], value("blue"))


def test_a_gradient_runs_from_top_to_bottom() -> None:
    scene = dataclasses.replace(RED_CIRCLE, background="gradient", background_colours=("green", "white"))
    image = render(scene, 64, 64)
    assert torch.allclose(image[:, 0, 0], value("green"), atol=0.02)
    assert torch.allclose(image[:, -1, 0], value("white"), atol=0.02)
    assert torch.allclose(image[:, 3, 0], image[:, 3, -1])


def test_edges_are_anti_aliased() -> None:
    red = render(RED_CIRCLE, 64, 64)[0]
    share = (red - value("blue")[0]) / (value("red")[0] - value("blue")[0])
    soft = ((share > 0.05) & (share < 0.95)).sum().item()
    assert 40 < soft < 300  # a ring about one pixel wide around a circle of radius 18
    assert abs(share.sum().item() - torch.pi * (0.28 * 64) ** 2) < 12


def test_twice_the_resolution_is_the_same_picture() -> None:
    for seed in range(10):
        low = render(sample_scene(seed), 32, 32)
        high = torch.nn.functional.avg_pool2d(render(sample_scene(seed), 64, 64), 2)
        assert (low - high).abs().mean() < 0.05


def test_textures_add_a_contrasting_colour() -> None:
    for texture in TEXTURES[1:]:
        image = render(dataclasses.replace(RED_CIRCLE, texture=texture), 64, 64)
        second = (contrast("red") * 2 - 1).expand_as(image)
        near = ((image - second).abs().amax(0) < 0.1).float().mean()
        assert near > 0.02, texture


def test_the_shape_moves_and_noise_changes_with_the_seed_only() -> None:
    scene = dataclasses.replace(RED_CIRCLE, background="mottled", background_colours=("green", "white"))
    assert not torch.equal(render(scene, 32, 32), render(dataclasses.replace(scene, seed=1), 32, 32))


def test_wrong_scenes_say_what_is_accepted() -> None:
    with pytest.raises(
        SdtmFxError, match=r"unknown shape 'cirle' \(did you mean 'circle'\?\); accepted: circle"
    ):
        dataclasses.replace(RED_CIRCLE, shape="cirle")
    with pytest.raises(SdtmFxError, match=r"unknown background colour 'bleu' \(did you mean 'blue'\?\)"):
        dataclasses.replace(RED_CIRCLE, background_colours=("bleu",))
    with pytest.raises(SdtmFxError, match=r"a gradient background takes 2 colour\(s\), found 1: blue"):
        dataclasses.replace(RED_CIRCLE, background="gradient")
    with pytest.raises(SdtmFxError, match="at least 1 pixel, found 0 x 5"):
        render(RED_CIRCLE, 0, 5)
