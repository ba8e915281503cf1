"""Muon: momentum whose matrix updates are orthogonalised (Jordan et al. 2024), batched over equal shapes.

On one CPU core the cost is a few batched products of small matrices, about a tenth of a training step.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable

import torch
from torch import Tensor, nn

_COEFFICIENTS = (3.4445, -4.7750, 2.0315)
_ITERATIONS = 5


def orthogonalise(matrices: Tensor) -> Tensor:
    """Return matrices with the same singular vectors and singular values near 1 (quintic Newton-Schulz).

    Args:
        matrices: [M, rows, columns] float32.
    """
    tall = matrices.shape[-2] > matrices.shape[-1]
    x = matrices.mT if tall else matrices
    x = x / (x.norm(dim=(-2, -1), keepdim=True) + 1e-7)
    a, b, c = _COEFFICIENTS
    for _ in range(_ITERATIONS):
        gram = x @ x.mT
        x = a * x + (b * gram + c * gram @ gram) @ x
    result: Tensor = x.mT if tall else x
    return result


class Muon(torch.optim.Optimizer):
    """Nesterov momentum, orthogonalised, scaled to the update size of AdamW (0.2 sqrt(max(rows, columns))).

    Args:
        params: Matrices only.
        lr: Learning rate, on AdamW's scale.
        momentum: Decay of the momentum buffer.
        weight_decay: Decoupled weight decay.
    """

    def __init__(
        self, params: Iterable[nn.Parameter], lr: float, momentum: float = 0.95, weight_decay: float = 0.01
    ) -> None:
        super().__init__(params, {"lr": lr, "momentum": momentum, "weight_decay": weight_decay})

    @torch.no_grad()
    def step(self, closure: None = None) -> None:  # type: ignore[override]
        """Update every parameter that has a gradient."""
        for group in self.param_groups:
            by_shape: dict[torch.Size, list[nn.Parameter]] = defaultdict(list)
            for param in group["params"]:
                if param.grad is not None:
                    by_shape[param.shape].append(param)
            for same in by_shape.values():
                self._update(same, group["lr"], group["momentum"], group["weight_decay"])

    def _update(self, params: list[nn.Parameter], lr: float, momentum: float, weight_decay: float) -> None:
        directions = []
        for param in params:
            grad, state = param.grad, self.state[param]
            assert grad is not None
            buffer = state.setdefault("momentum", torch.zeros_like(param))
            buffer.lerp_(grad, 1 - momentum)
            directions.append(grad.lerp(buffer, momentum))
        scale = 0.2 * max(params[0].shape) ** 0.5
        for param, update in zip(params, orthogonalise(torch.stack(directions)), strict=True):
            param.mul_(1 - lr * weight_decay).add_(update, alpha=-lr * scale)
