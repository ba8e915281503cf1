"""What the two toy transformers share: sizes, text widths, and a start from the identity."""

from __future__ import annotations

from collections.abc import Iterable

from torch import nn

from sdtm_fx.errors import SdtmFxError

IMAGE_CHANNELS = 3
"""Red, green, blue."""

PATCH = 2
"""Pixels per token side."""

MAX_TOKENS_PER_SIDE = 48
"""Largest number of tokens along height or width."""

TEXT_WIDTH = 128
"""Width of the caption encoder's rows, per word and pooled."""


def start_from_identity(layers: Iterable[nn.Linear]) -> None:
    """Zero modulations and output projections (DiT, Peebles & Xie 2023, section 3.2).

    Args:
        layers: Linear layers with a bias.
    """
    for layer in layers:
        nn.init.zeros_(layer.weight)
        nn.init.zeros_(layer.bias)


def check_size(height: int, width: int) -> None:
    """Raise unless a height and width in pixels make a token grid that the toys accept.

    Args:
        height: Pixels.
        width: Pixels.

    Raises:
        SdtmFxError: If a side is not a positive multiple of `PATCH`, or exceeds `MAX_TOKENS_PER_SIDE` tokens.
    """
    for name, pixels in (("height", height), ("width", width)):
        if pixels < PATCH or pixels % PATCH or pixels > PATCH * MAX_TOKENS_PER_SIDE:
            raise SdtmFxError(
                f"toy: {name} {pixels} px is not accepted; it must be a multiple of {PATCH} from {PATCH} to "
                f"{PATCH * MAX_TOKENS_PER_SIDE}"
            )
