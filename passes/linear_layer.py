"""What a layer must be for a pass to take it for the product with its weight."""

from __future__ import annotations

import torch

from sdtm_fx.capture.hooked import is_hooked


def obstacle(layer: torch.nn.Module) -> str | None:
    """Why a layer is more than a product with its weight (LoRA, hooks, quantisation), None if it is not."""
    kind = type(layer)
    if kind is not torch.nn.Linear:
        return f"it is a {kind.__module__}.{kind.__name__}"
    if is_hooked(layer):
        return "it has a hook"
    if type(layer.weight) is not torch.nn.Parameter:
        return f"its weight is a {type(layer.weight).__name__}"
    return None
