"""Stand-ins for weights that are elsewhere: a trace sees them where hooks would bring them before they run.

Offload hooks keep weights on ``meta`` or on the host, and casting hooks keep them in a storage dtype.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence
from typing import Any

import torch

from sdtm_fx.capture.arguments import Leaf
from sdtm_fx.capture.hooked import is_wrapped


@contextlib.contextmanager
def weights_in_place(model: torch.nn.Module, leaves: Sequence[Leaf]) -> Iterator[None]:
    """Inside, a module's tensors are on the device of the call, and those of wrapped modules in its dtype.

    Enter it under a fake mode: the stand-ins hold no values.

    Args:
        model: The module; its own tensors are back afterwards.
        leaves: The arguments of the call; the first floating-point tensor says device and dtype.
    """
    tensors = [leaf for leaf in leaves if isinstance(leaf, torch.Tensor)]
    example = next((t for t in tensors if t.is_floating_point()), None)
    replaced: list[tuple[dict[str, Any], str, torch.Tensor]] = []
    if example is None:
        yield
        return
    try:
        for module in model.modules():
            cast = is_wrapped(module)
            owners: tuple[dict[str, Any], ...] = (module._parameters, module._buffers, module.__dict__)
            for owner in owners:
                for name, tensor in [(n, t) for n, t in owner.items() if isinstance(t, torch.Tensor)]:
                    stand_in = _stand_in(tensor, example, cast)
                    if stand_in is not None:
                        replaced.append((owner, name, tensor))
                        owner[name] = stand_in
        yield
    finally:
        for owner, name, tensor in replaced:
            owner[name] = tensor


def _stand_in(tensor: torch.Tensor, example: torch.Tensor, cast: bool) -> torch.Tensor | None:
    dtype = example.dtype if cast and tensor.is_floating_point() else tensor.dtype
    # What a hook computed with gradients (weight norm) cannot be made fake without touching its graph.
    if tensor.device == example.device and tensor.dtype == dtype and tensor.is_leaf:
        return None
    return torch.empty_strided(tensor.shape, tensor.stride(), device=example.device, dtype=dtype)
