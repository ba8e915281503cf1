"""One argument of an example call, as words: its dimensions in terms of the size of the call, and what fills it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

import torch

from sdtm_fx.capture.whole_numbers import whole_ones

Dimension = int | str
Form = Literal["tensor", "pair", "shapes", "number", "list"]
Kind = Literal["float", "int", "bool"]


@dataclass(frozen=True)
class CallSizes:
    """The size of an example call.

    Attributes:
        batch: Samples.
        text: Text tokens.
        height: Rows of the latent, or of image tokens where the model is given tokens.
        width: Columns, alike.
        frames: Frames of a video latent.
        patch: Edge of a patch in the latent as the config says, for arguments that count patches.
    """

    batch: int
    text: int
    height: int
    width: int
    frames: int = 2
    patch: int = 1

    @property
    def area(self) -> int:
        """What lengths of sequences are counted in: rows times columns."""
        return self.height * self.width

    def named(self) -> dict[str, int]:
        """The sizes that dimensions may name."""
        return {
            "batch": self.batch,
            "text": self.text,
            "height": self.height,
            "width": self.width,
            "frames": self.frames,
            "tokens": self.area,
            "sequence": self.text + self.area,
            "patches": (self.height // self.patch) * (self.width // self.patch),
        }


@dataclass(frozen=True)
class Argument:
    """One argument.

    Attributes:
        shape: Dimensions: integers, names of `CallSizes`, or fields of the config.
        fill: What it holds; None: small random numbers.
        kind: Type of the numbers.
        form: ``tensor``; ``pair``, two of them (rotary tables); ``shapes``, a list of (frames, height, width) for
            each sample; ``number``, the one dimension as a Python integer; ``list``, one tensor of the remaining
            dimensions for each entry of the first.
    """

    shape: tuple[Dimension, ...]
    fill: Literal["zeros", "ones", "grid_ids"] | None = None
    kind: Kind = "float"
    form: Form = "tensor"

    def says(self) -> str:
        """The argument in words, for messages."""
        dims = ", ".join(map(str, self.shape))
        note = " ".join(filter(None, (self.fill, self.kind if self.kind != "float" else None)))
        form = "" if self.form == "tensor" else f"{self.form} of "
        return f"{form}[{dims}]{' ' + note if note else ''}"


def make(
    argument: Argument, sizes: CallSizes, config: Mapping[str, Any], device: torch.device, seed: int = 0
) -> Any:
    """Make the value of an argument.

    Args:
        argument: What.
        sizes: How large.
        config: The config that dimensions may name.
        device: Where; on meta nothing is filled in.
        seed: Of random numbers.
    """
    named = sizes.named()
    shape = tuple(
        d if isinstance(d, int) else named[d] if d in named else int(config[d]) for d in argument.shape
    )
    if argument.form == "number":
        return shape[0]
    if argument.form == "shapes":
        return [[(1, sizes.height, sizes.width)]] * sizes.batch
    if argument.form == "pair":
        return tuple(_tensor(argument, shape, sizes, device, seed + i) for i in range(2))
    if argument.form == "list":
        return [_tensor(argument, shape[1:], sizes, device, seed + i) for i in range(shape[0])]
    return _tensor(argument, shape, sizes, device, seed)


def _tensor(
    argument: Argument, shape: tuple[int, ...], sizes: CallSizes, device: torch.device, seed: int
) -> torch.Tensor:
    dtype = {"float": torch.float32, "int": torch.int64, "bool": torch.bool}[argument.kind]
    if argument.fill == "grid_ids":
        ids = torch.zeros(sizes.height, sizes.width, shape[-1], dtype=dtype)
        ids[..., -2] += torch.arange(sizes.height)[:, None]
        ids[..., -1] += torch.arange(sizes.width)
        return ids.reshape(-1, shape[-1]).expand(shape).to(device)
    if argument.fill == "ones" and argument.kind == "int":
        return whole_ones(shape, device)
    if argument.fill is not None or argument.kind != "float":
        return torch.full(shape, 1 if argument.fill == "ones" else 0, dtype=dtype, device=device)
    if device.type == "meta":
        return torch.empty(shape, dtype=dtype, device=device)
    generator = torch.Generator().manual_seed(seed + sum(shape))
    # A batch of timesteps: one moment, which every schedule has.
    if len(shape) == 1:
        return torch.full(shape, 0.5, dtype=dtype, device=device)
    return torch.randn(shape, generator=generator, dtype=dtype).to(device)
