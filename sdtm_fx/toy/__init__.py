"""A small trained text-to-image model: real diffusers classes, real behaviour, a few megabytes, no downloads.

Merging must be judged on a trained model: random weights have no redundancy to lose. `load_toy` gives one.
"""

from __future__ import annotations

from sdtm_fx.toy.captions import CaptionEncoder, parse_caption, tokenize
from sdtm_fx.toy.load import load_toy
from sdtm_fx.toy.pipeline import ToyFluxPipeline, ToyPipeline, ToySD3Pipeline
from sdtm_fx.toy.scenes import Scene, render, sample_scene, scenes

__all__ = [
    "CaptionEncoder",
    "Scene",
    "ToyFluxPipeline",
    "ToyPipeline",
    "ToySD3Pipeline",
    "load_toy",
    "parse_caption",
    "render",
    "sample_scene",
    "scenes",
    "tokenize",
]
