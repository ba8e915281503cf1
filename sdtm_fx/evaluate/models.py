"""Finds what to evaluate: a toy or a folder of a diffusers checkpoint, its prompts, and real scenes."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from sdtm_fx.errors import SdtmFxError, nearest
from sdtm_fx.toy.load import TOYS, load_toy
from sdtm_fx.toy.scenes import render, sample_scene

_PREFIX = "toy-"

DTYPES: dict[str, torch.dtype] = {
    "float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16,
}  # fmt: skip
"""Floating types that a model can be loaded in."""

PROMPT_SCENES, REAL_SCENES = -1, -(2**40)
"""Seeds of the scenes whose captions are prompts, and of the real scenes that images are compared with: both
count down from here. Toys and judge train on seeds that are not negative."""


@dataclass(frozen=True)
class ModelSource:
    """Where a pipeline comes from; it can be sent to another process.

    Attributes:
        name: `toy-` and the name of a toy, or the folder of a checkpoint that `save_pretrained` wrote.
        dtype: A key of `DTYPES`.
        device: As torch names it.
    """

    name: str
    dtype: str = "float32"
    device: str = "cpu"

    def __post_init__(self) -> None:
        if self.dtype not in DTYPES:
            raise SdtmFxError(
                f"model: no dtype {self.dtype!r}{nearest(self.dtype, DTYPES)}; accepted: {', '.join(DTYPES)}"
            )
        if self.is_toy or (Path(self.name) / "model_index.json").is_file():
            return
        toys = [f"{_PREFIX}{toy}" for toy in TOYS]
        if Path(self.name).is_dir():
            raise SdtmFxError(
                f"model: {self.name} has no model_index.json; it is no checkpoint of a diffusers pipeline"
            )
        raise SdtmFxError(
            f"model: no toy and no folder {self.name!r}{nearest(self.name, toys)}; accepted: {', '.join(toys)}, or "
            "the folder of a diffusers checkpoint"
        )

    @property
    def is_toy(self) -> bool:
        """Whether the package carries the model."""
        return self.name.startswith(_PREFIX) and self.name.removeprefix(_PREFIX) in TOYS

    def load(self) -> Any:
        """Load the pipeline, without its progress bar.

        Raises:
            SdtmFxError: The folder is no text-to-image pipeline of diffusers, or cannot be read.
        """
        dtype = DTYPES[self.dtype]
        if self.is_toy:
            pipeline: Any = load_toy(self.name.removeprefix(_PREFIX), dtype=dtype)
        else:
            pipeline = _from_folder(Path(self.name), dtype)
        pipeline.set_progress_bar_config(disable=True)
        return pipeline.to(self.device)


def _from_folder(folder: Path, dtype: torch.dtype) -> Any:
    import diffusers

    index = json.loads((folder / "model_index.json").read_text(encoding="utf-8"))
    name = index.get("_class_name")
    if not hasattr(diffusers, str(name)):
        raise SdtmFxError(f"model: {folder}: _class_name is {name!r}, which is no pipeline of diffusers")
    try:
        return diffusers.DiffusionPipeline.from_pretrained(folder, torch_dtype=dtype, local_files_only=True)
    except (OSError, ValueError) as error:
        raise SdtmFxError(f"model: {folder} cannot be loaded: {error}") from error


def read_prompts(path: Path) -> tuple[str, ...]:
    """Prompts from a text file, one a line; empty lines are left out.

    Raises:
        SdtmFxError: The file cannot be read, or has no prompts.
    """
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise SdtmFxError(f"prompts: {path} cannot be read: {error}") from error
    prompts = tuple(line.strip() for line in lines if line.strip())
    if not prompts:
        raise SdtmFxError(f"prompts: {path} has no prompts; write one a line")
    return prompts


def choose_prompts(source: ModelSource, given: Path | None, count: int, seed: int) -> tuple[str, ...]:
    """A prompt for each image: from a file, taken in turn, or captions of scenes that no toy was trained on.

    Args:
        source: The model.
        given: File of prompts; only toys do without.
        count: Number of images.
        seed: Of the first image; others follow.

    Raises:
        SdtmFxError: There is no file where one is needed; and as `read_prompts`.
    """
    if given is not None:
        prompts = read_prompts(given)
        return tuple(prompts[index % len(prompts)] for index in range(count))
    if not source.is_toy:
        raise SdtmFxError(f"prompts: {source.name} is no toy; give a file of prompts, one a line (--prompts)")
    return tuple(sample_scene(PROMPT_SCENES - seed - index).caption for index in range(count))


def real_scenes(count: int, height: int, width: int) -> Tensor:
    """Scenes drawn by their own rules, [count, 3, height, width] float32 in [0, 1]; no prompt is about them."""
    drawn = [render(sample_scene(REAL_SCENES - index), height, width) for index in range(count)]
    return torch.stack(drawn) / 2 + 0.5
