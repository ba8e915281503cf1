"""Token ages as methods read them: how long each token has not been alone in its slot."""

from __future__ import annotations

import torch
from torch import Tensor

from sdtm_fx.methods.base import OptionError


def check_age_sign(sign: int, name: str) -> None:
    """Raise OptionError unless an age sign is +1 or -1."""
    if sign not in (1, -1):
        raise OptionError(f"{name}: found age_sign {sign}; accepted 1 (merge old tokens on) or -1 (fair)")


def relative_ages(ages: Tensor) -> Tensor:
    """Return each age over the mean age of its sample, [B, N] float32 (SDTM, P_fre); 0 before any merge."""
    values = ages.to(torch.float32)
    return values / (values.mean(dim=1, keepdim=True) + 1e-6)
