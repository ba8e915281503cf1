"""What decides which images are drawn, beside the settings: weights, code, versions, device."""

from __future__ import annotations

import hashlib
import inspect
import json
import os
import platform
from importlib import metadata
from pathlib import Path
from typing import Any

import diffusers
import numpy as np
import torch
import torchmetrics

import sdtm_fx.passes
from sdtm_fx.provenance import commit_of_code, processor

_ROOT = Path(sdtm_fx.__file__).parent
_DRAWS_NOTHING = ("analyze", "bench", "cli", "demo", "evaluate", "toy", "tuning")


def weights_digest(*modules: torch.nn.Module) -> str:
    """SHA-256 of the names, shapes, dtypes and bytes of every tensor in the state of some modules."""
    digest = hashlib.sha256()
    for module in modules:
        for name, tensor in sorted(module.state_dict().items()):
            digest.update(f"{name} {tuple(tensor.shape)} {tensor.dtype};".encode())
            raw = tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8)
            digest.update(raw.numpy().data)
    return digest.hexdigest()


def pipeline_digest(pipeline: Any) -> str:
    """SHA-256 of the weights and configurations of every component of a pipeline."""
    digest = hashlib.sha256(type(pipeline).__name__.encode())
    for name, component in sorted(pipeline.components.items()):
        config: Any = getattr(component, "config", {})
        told = config.to_dict() if hasattr(config, "to_dict") else config
        # Where the files lie, and which diffusers wrote them, changes no image.
        plain = {k: v for k, v in told.items() if k not in ("_name_or_path", "_diffusers_version")}
        digest.update(f"{name} {type(component).__name__} ".encode())
        digest.update(json.dumps(plain, sort_keys=True, default=str).encode())
        if isinstance(component, torch.nn.Module):
            digest.update(weights_digest(component).encode())
    return digest.hexdigest()


def source_digest(pipeline: Any) -> str:
    """SHA-256 of the code of this package that takes part in drawing: the library, and what the pipeline is of."""
    passes = Path(sdtm_fx.passes.__file__ or "").parent
    files = [path for folder in (_ROOT, passes) for path in folder.rglob("*.py") if _draws(path)]
    kinds = (kind for part in (pipeline, *pipeline.components.values()) for kind in type(part).__mro__)
    own = {inspect.getfile(kind) for kind in kinds if kind.__module__.partition(".")[0] == "sdtm_fx"}
    digest = hashlib.sha256()
    for path in sorted({*files, *map(Path, own)}):
        digest.update(f"{path.parent.name}/{path.name}:".encode() + path.read_bytes())
    return digest.hexdigest()


def _draws(path: Path) -> bool:
    return not path.is_relative_to(_ROOT) or path.relative_to(_ROOT).parts[0] not in _DRAWS_NOTHING


def identity(pipeline: Any) -> dict[str, Any]:
    """Everything that decides what a pipeline draws here, beside the settings, as plain data."""
    model = next(m for m in pipeline.components.values() if isinstance(m, torch.nn.Module))
    tensor = next(model.parameters())
    return {
        "pipeline": pipeline_digest(pipeline),
        "source": source_digest(pipeline),
        "torch": torch.__version__,
        "diffusers": diffusers.__version__,
        "machine": processor(),
        "device": _device_name(tensor.device),
        "dtype": str(tensor.dtype).removeprefix("torch."),
        "threads": torch.get_num_threads(),
    }


def environment() -> dict[str, Any]:
    """Versions, commit and hardware, as plain data."""
    return {
        "sdtm_fx": metadata.version("sdtm_fx"),
        "commit": commit_of_code(),
        "python": platform.python_version(),
        "torch": torch.__version__,
        "diffusers": diffusers.__version__,
        "torchmetrics": torchmetrics.__version__,
        "numpy": np.__version__,
        "system": platform.platform(),
        "processor": processor(),
        "cores": os.cpu_count(),
    }


def _device_name(device: torch.device) -> str:
    return torch.cuda.get_device_name(device) if device.type == "cuda" else device.type
