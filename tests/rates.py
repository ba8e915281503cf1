"""Made-up measurements of this machine, for tests of the cost gate."""

from __future__ import annotations

import torch

from sdtm_fx.cost.profile import DeviceKey, DeviceProfile

FREE = 1e30
"""A rate so high that the work takes no time."""


def made_up(launch: float = 1 / FREE, compiled: bool = False, **rates: float) -> DeviceProfile:
    """The profile of a machine on which everything is free but what is named."""
    parts = ("linear", "attention", "streamed", "gathered", "activated", "sorted")
    key = DeviceKey.of(torch.device("cpu"), torch.float32, compiled)
    return DeviceProfile(key, launch=launch, **{part: rates.get(part, FREE) for part in parts})
