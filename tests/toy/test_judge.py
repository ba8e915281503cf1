from __future__ import annotations

import re
from pathlib import Path

import pytest
import torch
from torch import Tensor

from sdtm_fx.errors import SdtmFxError
from sdtm_fx.toy import judge as judge_module
from sdtm_fx.toy.judge import ATTRIBUTES, WEIGHTS, WORDS, Judge, load_judge
from sdtm_fx.toy.judge_data import disturb, draw, unseen
from sdtm_fx.toy.judge_grade import Grades, grade_samples, grade_scenes, sample
from sdtm_fx.toy.load import load_toy
from sdtm_fx.toy.scenes import Scene, sample_scene


@pytest.fixture(scope="module")
def judge() -> Judge:
    return load_judge()


def captions(scenes: list[Scene]) -> list[str]:
    return [scene.caption for scene in scenes]


def test_it_grades_rendered_scenes_right(judge: Judge) -> None:
    grades = grade_scenes(judge, 320, 64, 64)
    assert grades.count == 320
    for name in ATTRIBUTES:
        assert grades.share(name) >= 0.99, name
    assert grades.share("all") >= 0.98


@pytest.mark.parametrize("size", [(48, 64), (96, 96), (40, 56), (64, 32), (48, 48)])
def test_it_reads_other_sizes(judge: Judge, size: tuple[int, int]) -> None:
    grades = grade_scenes(judge, 64, *size)
    assert all(grades.share(name) >= 0.95 for name in ATTRIBUTES), grades.hits()


def test_slight_faults_do_not_unsettle_it(judge: Judge) -> None:
    scenes = unseen(128)
    images = disturb(draw(scenes, 64, 64), torch.Generator().manual_seed(0))
    assert judge.grade(images, captions(scenes)).float().mean(0).min() >= 0.97


def test_wrong_captions_are_seen_one_attribute_at_a_time(judge: Judge) -> None:
    caption = "a large plain red circle at the upper left on a plain blue background"
    image = draw([sample_scene(0)], 64, 64)
    scene = sample_scene(0)
    assert judge.grade(image, [scene.caption]).tolist() == [[True] * 4]
    assert caption != scene.caption
    for column, name in enumerate(ATTRIBUTES):
        other = next(word for word in WORDS[name] if word != getattr(scene, name))
        words = {name: getattr(scene, name) for name in WORDS} | {name: other}
        wrong = Scene(**words, background_colours=scene.background_colours).caption
        assert judge.grade(image, [wrong]).tolist() == [[place != column for place in range(4)]]


def test_answers_name_every_attribute(judge: Judge) -> None:
    scenes = unseen(24)
    answers = judge.answers(draw(scenes, 64, 64))
    for name in WORDS:
        given = getattr(answers, name)
        assert set(given) <= set(WORDS[name])
        right = sum(answer == getattr(scene, name) for answer, scene in zip(given, scenes, strict=True))
        assert right >= 22, name


def test_features_do_not_depend_on_the_batch_and_tell_scenes_apart(judge: Judge) -> None:
    images = draw(unseen(8), 64, 64)
    features = judge.features(images)
    assert features.shape == (8, judge.config.feature_width)
    assert features.dtype == torch.float32
    assert not features.requires_grad
    assert torch.allclose(features[3:4], judge.features(images[3:4]), atol=1e-4)
    assert torch.equal(features, judge.features(images))
    assert torch.pdist(features).min() > 1
    assert judge.features(images[:0]).shape == (0, judge.config.feature_width)


def test_the_weights_are_small_and_half_precision() -> None:
    files = [path for path in WEIGHTS.rglob("*") if path.is_file()]
    assert {path.name for path in files} == {"config.json", "diffusion_pytorch_model.safetensors"}
    assert sum(path.stat().st_size for path in files) < 1_500_000
    judge = load_judge()
    assert not judge.training
    assert sum(param.numel() for param in judge.parameters()) < 700_000
    assert all(param.dtype == torch.float32 for param in judge.parameters())
    assert all(torch.equal(param, param.half().float()) for param in judge.parameters())


@pytest.mark.parametrize(
    ("images", "message"),
    [
        (torch.zeros(3, 64, 64), r"must be \[B, 3, height, width\] of a floating type, found \[3, 64, 64\]"),
        (torch.zeros(1, 1, 64, 64), r"found \[1, 1, 64, 64\] of torch.float32"),
        (torch.zeros(1, 3, 64, 64, dtype=torch.uint8), "of torch.uint8"),
        (torch.zeros(1, 3, 16, 64), "height 16 px is not accepted; it must be 32 to 96"),
        (torch.zeros(1, 3, 64, 128), "width 128 px is not accepted; it must be 32 to 96"),
        (torch.full((1, 3, 64, 64), -1.0), r"in \[0, 1\], found -1 to -1; images in \[-1, 1\] are \(images"),
        (torch.full((1, 3, 64, 64), float("nan")), r"must be finite and in \[0, 1\], found nan to nan"),
    ],
)
def test_what_it_does_not_read(judge: Judge, images: Tensor, message: str) -> None:
    with pytest.raises(SdtmFxError, match=message):
        judge.features(images)


def test_captions_that_do_not_fit(judge: Judge) -> None:
    images = torch.zeros(2, 3, 64, 64)
    with pytest.raises(SdtmFxError, match="1 captions for 2 images; pass one per image"):
        judge.grade(images, [sample_scene(0).caption])
    with pytest.raises(SdtmFxError, match="'a red circle' is incomplete"):
        judge.grade(images, [sample_scene(0).caption, "a red circle"])
    with pytest.raises(SdtmFxError, match=r"word 2, 'rde', .*did you mean 'red'"):
        judge.grade(images, [sample_scene(0).caption, "a rde circle"])


def test_weights_of_other_words_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    Judge(width=4, words=WORDS | {"shape": ("circle", "square")}).save_pretrained(tmp_path)
    monkeypatch.setattr(judge_module, "WEIGHTS", tmp_path)
    with pytest.raises(SdtmFxError, match=r"trained for other words \(shape\) than scenes.py has; train"):
        load_judge()


def test_grades_count_attributes_and_all_of_them() -> None:
    grades = Grades(torch.tensor([[True, True, False, True], [True, True, True, True]]))
    assert grades.hits() == {"shape": 2, "colour": 2, "position": 1, "size": 2, "all": 1}
    assert grades.share("position") == 0.5
    assert grades.share("all") == 0.5


def test_a_toy_is_graded_by_its_samples(judge: Judge) -> None:
    pipe = load_toy("sd3")
    seen: list[int] = []
    samples = list(sample(pipe, 3, height=32, width=32, steps=2, batch=2, on_images=seen.append))
    assert seen == [2, 1]
    assert [part.images.shape for part in samples] == [(2, 3, 32, 32), (1, 3, 32, 32)]
    assert grade_samples(judge, samples).count == 3
    assert [scene for part in samples for scene in part.scenes] == unseen(3)
    alone = next(iter(sample(pipe, 1, height=32, width=32, steps=2)))
    assert torch.allclose(alone.images[0], samples[0].images[0], atol=1e-4)
    for call in (
        lambda: grade_scenes(judge, 0, 64, 64),
        lambda: list(sample(pipe, 0, height=32, width=32, steps=1)),
    ):
        with pytest.raises(SdtmFxError, match=re.escape("0 images cannot be graded; give at least 1")):
            call()
