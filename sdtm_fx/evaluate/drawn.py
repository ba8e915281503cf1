"""One batch of images of one row, in memory and as a file."""

from __future__ import annotations

import json
import os
from dataclasses import asdict, dataclass
from pathlib import Path

from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from sdtm_fx.cost.cost import Cost
from sdtm_fx.cost.counter import Macs
from sdtm_fx.errors import SdtmFxError


@dataclass(frozen=True)
class Drawn:
    """One batch of one row.

    Attributes:
        images: [B, 3, H, W] float32 in [0, 1].
        seconds: That drawing them took.
        latents: [T, B, ...] after each step, of a dense batch that others are compared with; else None.
        growth: [B, T] float64, relative error of the latents after each step; None where it was not recorded.
        cost: None where the row is dense.
    """

    images: Tensor
    seconds: float
    latents: Tensor | None = None
    growth: Tensor | None = None
    cost: Cost | None = None


def write_drawn(drawn: Drawn, path: Path) -> None:
    """Write a batch; the file appears when it is whole.

    Args:
        drawn: The batch.
        path: A file in a folder that exists.
    """
    named = {"images": drawn.images, "latents": drawn.latents, "growth": drawn.growth}
    tensors = {name: tensor.contiguous() for name, tensor in named.items() if tensor is not None}
    cost = None if drawn.cost is None else asdict(drawn.cost)
    part = path.with_name(f"{path.name}.{os.getpid()}.part")
    save_file(tensors, part, metadata={"seconds": json.dumps(drawn.seconds), "cost": json.dumps(cost)})
    part.replace(path)


def read_drawn(path: Path) -> Drawn:
    """Read a batch.

    Raises:
        SdtmFxError: The file is damaged.
    """
    try:
        with safe_open(path, framework="pt") as file:
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
            told = {name: json.loads(text) for name, text in file.metadata().items()}
    except (SafetensorError, OSError) as error:
        raise _damaged(path, error) from error
    cost = told["cost"]
    return Drawn(
        images=tensors["images"],
        seconds=told["seconds"],
        latents=tensors.get("latents"),
        growth=tensors.get("growth"),
        cost=None if cost is None else Cost(Macs(**cost["macs"]), Macs(**cost["dense"])),
    )


def names_in(path: Path) -> set[str]:
    """Names of the tensors in a file, without reading them.

    Raises:
        SdtmFxError: The file is damaged.
    """
    try:
        with safe_open(path, framework="pt") as file:
            return set(file.keys())
    except (SafetensorError, OSError) as error:
        raise _damaged(path, error) from error


def _damaged(path: Path, error: Exception) -> SdtmFxError:
    return SdtmFxError(
        f"{path}: this batch of images is damaged ({error}); delete it, or start afresh (--fresh)"
    )
