"""Benchmarks of a model that is not among the published ones."""

from __future__ import annotations

from pathlib import Path

from sdtm_fx.bench.models import BenchModel
from sdtm_fx.errors import RewriteError
from sdtm_fx.inspecting.building import layer_fields
from sdtm_fx.inspecting.opening import open_subject


def own_model(path: Path) -> BenchModel:
    """Return the model of a config, with tokens of 16 x 16 pixels, 77 of text, and one sample for each image.

    Args:
        path: A ``config.json`` of diffusers, or a checkpoint folder.

    Raises:
        InspectionError: The config is not there, or does not fit its class.
        RewriteError: No field of it counts blocks.
    """
    subject = open_subject(str(path))
    layers = layer_fields(subject.config)
    if not layers:
        raise RewriteError(
            f"{path}: no field counts blocks (num_layers, depth, ...), so a part of {subject.name} cannot be built; "
            f"it has {', '.join(subject.config)}"
        )
    return BenchModel(subject.kind, dict(subject.config), layers, pixels=16, text=77, halves=1)
