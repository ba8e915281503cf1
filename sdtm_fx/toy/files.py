"""Reads what training wrote: checkpoints and weights. A file that is missing or cut short is named."""

from __future__ import annotations

import json
import pickle
from pathlib import Path
from typing import Any, TypeVar

import torch
from diffusers.models.modeling_utils import ModelMixin
from safetensors import SafetensorError, safe_open

from sdtm_fx.errors import SdtmFxError

WEIGHTS_FILE = "diffusion_pytorch_model.safetensors"
"""Name that diffusers gives to the weights of a model."""

_REMEDY = "install the package again, or export the weights again"

Model = TypeVar("Model", bound=ModelMixin)


def read_model(kind: type[Model], folder: Path) -> Model:
    """Load a diffusers model from a folder that `save_pretrained` wrote: float32, on the CPU.

    Args:
        kind: Its class.
        folder: Holds `config.json` and `WEIGHTS_FILE`.

    Raises:
        SdtmFxError: If a file is missing or not whole, or the weights are not those of the model.
    """
    config, weights = folder / "config.json", folder / WEIGHTS_FILE
    for path in (config, weights):
        if not path.is_file():
            raise SdtmFxError(
                f"toy: {path} is missing; install the package again, or export the weights again"
            )
    try:
        json.loads(config.read_bytes())
        with safe_open(weights, "pt"):  # reads the header, and compares its sizes with the file's
            pass
    except (SafetensorError, ValueError) as error:
        path = weights if isinstance(error, SafetensorError) else config
        raise SdtmFxError(
            f"toy: {path} is not whole ({path.stat().st_size} bytes: {error}); it was cut short or damaged: "
            "install the package again, or export the weights again"
        ) from error
    model, found = kind.from_pretrained(
        folder, local_files_only=True, use_safetensors=True, low_cpu_mem_usage=False, output_loading_info=True
    )
    wrong = {name: keys for name, keys in found.items() if keys}
    if wrong:
        listed = "; ".join(f"{name}: {keys}" for name, keys in wrong.items())
        raise SdtmFxError(f"toy: {weights} does not hold the weights of {kind.__name__}: {listed}")
    loaded: Model = model
    return loaded


def read_config(path: Path) -> dict[str, Any]:
    """Read a configuration that diffusers wrote as JSON.

    Args:
        path: The file.

    Raises:
        SdtmFxError: If it is missing or not whole.
    """
    try:
        content: dict[str, Any] = json.loads(_found(path).read_bytes())
    except ValueError as error:
        raise _not_whole(path, error) from error
    return content


def read_checkpoint(path: Path) -> dict[str, Any]:
    """Read a training checkpoint on the CPU; nothing in it is executed.

    Args:
        path: Written by `torch.save`.

    Raises:
        SdtmFxError: If it is missing or not whole.
    """
    if not path.is_file():
        raise SdtmFxError(f"train: nothing to resume or export: {path} is missing")
    try:
        state: dict[str, Any] = torch.load(path, map_location="cpu", weights_only=True)
    # What torch raises depends on where the file ends, and on what is there instead of a checkpoint.
    except (EOFError, KeyError, OSError, RuntimeError, pickle.UnpicklingError) as error:
        raise SdtmFxError(
            f"train: {path} is not a whole checkpoint ({path.stat().st_size} bytes: {type(error).__name__}); "
            "it was cut short or damaged: put a whole copy back, or delete it and train again"
        ) from error
    return state


def _found(path: Path) -> Path:
    if not path.is_file():
        raise SdtmFxError(f"toy: {path} is missing; {_REMEDY}")
    return path


def _not_whole(path: Path, error: Exception) -> SdtmFxError:
    size = path.stat().st_size
    return SdtmFxError(
        f"toy: {path} is not whole ({size} bytes: {error}); it was cut short or damaged: {_REMEDY}"
    )
