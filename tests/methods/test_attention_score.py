"""Attention received by image tokens: chunks are exact, probes are close."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from sdtm_fx.attention_score import received_attention
from sdtm_fx.errors import PlanError

TEXT, SIDE, HEADS = 9, 16, 3


def smooth_features(seed: int) -> Tensor:
    """[2, HEADS, TEXT + SIDE², 16]: image tokens that resemble their neighbours, as in a model."""
    draw = torch.Generator().manual_seed(seed)
    coarse = torch.randn(2 * HEADS, 16, SIDE // 4, SIDE // 4, generator=draw)
    image = torch.nn.functional.interpolate(coarse, size=(SIDE, SIDE), mode="bilinear")
    image = image.flatten(2).mT.reshape(2, HEADS, SIDE * SIDE, 16)
    return torch.cat([torch.randn(2, HEADS, TEXT, 16, generator=draw), image], dim=2) * 1.5


def dense(query: Tensor, key: Tensor) -> Tensor:
    weights = torch.softmax(query.double() @ key.double().mT / 4, dim=-1)
    return weights[:, :, TEXT:, TEXT:].mean(dim=(1, 2))


@pytest.mark.parametrize("chunk", [1, 60, 256, 1000])
def test_chunks_give_the_dense_map(chunk: int) -> None:
    query, key = smooth_features(0), smooth_features(1)
    found = received_attention(query, key, image=(TEXT, SIDE * SIDE), chunk=chunk)
    assert found.shape == (2, SIDE * SIDE)
    assert found.dtype == torch.float32
    torch.testing.assert_close(found.double(), dense(query, key), atol=1e-7, rtol=1e-5)


def test_low_precision_stays_close() -> None:
    query, key = smooth_features(0).bfloat16(), smooth_features(1).bfloat16()
    found = received_attention(query, key, image=(TEXT, SIDE * SIDE))
    torch.testing.assert_close(found.double(), dense(query, key), atol=1e-5, rtol=0.03)


def test_probes_estimate_the_dense_map() -> None:
    query, key = smooth_features(2), smooth_features(3)
    exact = dense(query, key)
    errors = []
    for probes in (16, 32, 64):
        found = received_attention(query, key, image=(TEXT, SIDE * SIDE), probes=probes).double()
        errors.append(((found - exact).abs().mean() / exact.mean()).item())
    assert errors[0] > errors[2]
    assert errors[2] < 0.12
    agree = torch.corrcoef(torch.stack([found[0], exact[0]]))[0, 1]
    assert agree > 0.95


def test_as_many_probes_as_tokens_is_exact() -> None:
    query, key = smooth_features(4), smooth_features(5)
    for probes in (SIDE * SIDE, 9999, None):
        found = received_attention(query, key, image=(TEXT, SIDE * SIDE), probes=probes)
        torch.testing.assert_close(found.double(), dense(query, key), atol=1e-7, rtol=1e-5)


def test_the_scale_is_the_callers() -> None:
    query, key = smooth_features(6), smooth_features(7)
    found = received_attention(query, key, image=(TEXT, SIDE * SIDE), scale=0.5)
    expected = received_attention(query * 2, key, image=(TEXT, SIDE * SIDE))
    torch.testing.assert_close(found, expected)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"image": (250, 20)}, "image tokens 250 to 270 in sequences of 265 queries and 265 keys"),
        ({"image": (-1, 5)}, "image tokens -1 to 4"),
        ({"image": (0, 9), "probes": 0}, "chunk 256 and probes 0; accepted counts of one or more"),
        ({"image": (0, 9), "chunk": 0}, "chunk 0"),
    ],
)
def test_spans_and_counts_out_of_range(options: dict[str, int], message: str) -> None:
    with pytest.raises(PlanError, match=message):
        received_attention(smooth_features(0), smooth_features(1), **options)  # type: ignore[arg-type]
