"""Small models to inspect: a subject of any model that a test builds."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from diffusers import BriaTransformer2DModel, LongCatImageTransformer2DModel, OvisImageTransformer2DModel
from torch import nn

from sdtm_fx.inspecting.opening import Subject

_FLUX_LIKE: dict[str, Any] = {
    "in_channels": 16, "num_layers": 2, "num_single_layers": 2, "attention_head_dim": 16, "num_attention_heads": 2,
    "joint_attention_dim": 32, "axes_dims_rope": (4, 4, 8),
}  # fmt: skip


def subject_of(model: nn.Module) -> Subject:
    """What a config file of this model would say."""
    config: Any = model.config
    return Subject(type(model), {n: v for n, v in config.items() if not n.startswith("_")}, "a test")


def unshipped(kind: type[nn.Module]) -> Subject:
    """A class that no shipped recipe is for."""
    return Subject(kind, dict(_FLUX_LIKE), "a test")


UNSHIPPED = (BriaTransformer2DModel, OvisImageTransformer2DModel, LongCatImageTransformer2DModel)


def write_config(folder: Path, data: dict[str, Any], name: str = "config.json") -> Path:
    """Write a config file."""
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / name
    path.write_text(json.dumps(data), encoding="utf-8")
    return path
