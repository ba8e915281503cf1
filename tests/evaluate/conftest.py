"""A pipeline of one small random block, and a judge that needs no weights."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import pytest
import torch
from diffusers import FlowMatchEulerDiscreteScheduler
from torch import Tensor

from sdtm_fx.evaluate.drawing import threads
from sdtm_fx.recipe import Recipe, load_recipe
from sdtm_fx.toy import CaptionEncoder, ToySD3Pipeline, sample_scene
from sdtm_fx.toy.sd3 import build_sd3
from tests.pipelines import randomize


@pytest.fixture(autouse=True, scope="package")
def _one_thread() -> Iterator[None]:
    with threads(1):
        yield


@dataclass(frozen=True)
class FakeJudge:
    """Twelve features: the mean colour of each quarter. It grades whether an image is more red than blue."""

    attributes: tuple[str, ...] = ("red", "any")

    def features(self, images: Tensor) -> Tensor:
        return torch.nn.functional.adaptive_avg_pool2d(images, 2).flatten(1)

    def grade(self, images: Tensor, captions: Sequence[str]) -> Tensor:
        assert len(captions) == len(images)
        red = images[:, 0].mean((1, 2)) > images[:, 2].mean((1, 2))
        return torch.stack([red, torch.ones_like(red)], dim=1)


@pytest.fixture
def judge() -> FakeJudge:
    return FakeJudge()


def tiny_pipeline() -> Any:
    transformer = build_sd3(num_layers=2, num_heads=2, head_dim=8).eval()
    randomize(transformer, seed=0, scale=0.2)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        encoder = CaptionEncoder().eval()
    pipe = ToySD3Pipeline(transformer, encoder, FlowMatchEulerDiscreteScheduler())
    pipe.set_progress_bar_config(disable=True)
    return pipe


@pytest.fixture(scope="package")
def tiny() -> Any:
    """Tests leave it dense."""
    return tiny_pipeline()


def merging(ratio: float, **changes: Any) -> Recipe:
    """Plain merging, without forecasts, in all steps but the last."""
    return load_recipe("toy-sd3-windows").override(
        {
            "stages.detail.method": {"name": "local_match"},
            "ratio": {"curve": "constant", "start": ratio},
            "keep_dense": {"first_steps": 0, "every_steps": None},
        },
        reuse=None,
        **changes,
    )


def request(count: int = 6, **changes: Any) -> dict[str, Any]:
    """Settings of a small evaluation."""
    return {
        "prompts": [sample_scene(-1 - index).caption for index in range(count)],
        "seeds": range(count),
        "steps": 3,
        "height": 16,
        "width": 20,
        "batch": 4,
        **changes,
    }
