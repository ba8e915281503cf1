"""Published configurations made small enough to time in a test; the times themselves are not judged."""

from __future__ import annotations

import dataclasses

import pytest

from sdtm_fx.bench import configs

SD3 = {"num_attention_heads": 2, "attention_head_dim": 8, "caption_projection_dim": 16, "joint_attention_dim": 16,
       "pooled_projection_dim": 16, "sample_size": 16}  # fmt: skip
FLUX = {"num_attention_heads": 2, "attention_head_dim": 16, "axes_dims_rope": (4, 6, 6), "joint_attention_dim": 16,
        "pooled_projection_dim": 16, "in_channels": 8}  # fmt: skip


def _small(monkeypatch: pytest.MonkeyPatch, name: str, sizes: dict[str, object]) -> configs.BenchModel:
    full = configs.MODELS[name]
    small = dataclasses.replace(full, config={**full.config, **sizes}, text=8)
    monkeypatch.setitem(configs.MODELS, name, small)
    return small


@pytest.fixture
def small_sd3(monkeypatch: pytest.MonkeyPatch) -> configs.BenchModel:
    return _small(monkeypatch, "sd3-medium", SD3)


@pytest.fixture
def small_flux(monkeypatch: pytest.MonkeyPatch) -> configs.BenchModel:
    return _small(monkeypatch, "flux.1-dev", FLUX)
