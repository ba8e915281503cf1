"""A toy pipeline that is small enough for tests: two untrained blocks whose every weight does something."""

from __future__ import annotations

import torch
from diffusers import FlowMatchEulerDiscreteScheduler

from sdtm_fx.toy.captions import CaptionEncoder
from sdtm_fx.toy.model import TEXT_WIDTH
from sdtm_fx.toy.pipeline import ToySD3Pipeline
from sdtm_fx.toy.sd3 import build_sd3

SIZE = {"height": 32, "width": 32}
"""16 x 16 tokens."""

SMALL = {"sites.*.expect": None, "plan.round_to": 1}
"""What a recipe needs here."""


def tiny_pipeline() -> ToySD3Pipeline:
    transformer = build_sd3(seed=1, num_layers=2, num_heads=2, head_dim=16).eval()
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for param in transformer.parameters():
            if not param.any():
                param.copy_(torch.randn(param.shape, generator=generator) * 0.1)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        encoder = CaptionEncoder(width=TEXT_WIDTH, pooled_width=TEXT_WIDTH).eval()
    pipeline = ToySD3Pipeline(transformer, encoder, FlowMatchEulerDiscreteScheduler(shift=2.0))
    pipeline.set_progress_bar_config(disable=True)
    return pipeline
