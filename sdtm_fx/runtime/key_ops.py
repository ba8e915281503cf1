"""Operations on keys and values inside attention: fewer of them, and what each of the rest counts for."""

from __future__ import annotations

import torch
from torch.nn import functional as F

from sdtm_fx.plan import MergePlan


def reduce_keys(plan: MergePlan, rows: torch.Tensor, start: int, length: int, axis: int) -> torch.Tensor:
    """Merge the image part of keys or values; what stands before and behind it, text, stays.

    Keys come as attention gets them: normed, and rotated at their own positions. Where a slot holds the token that
    represents it (``prune``), that position is exact, which is section 9's reading of ToDo under rotary embedding.
    Where it holds a mean, rotated keys are averaged; the mean of two rotations is a shorter vector in between.

    Args:
        plan: The plan over the image tokens.
        rows: Keys or values: [B, H, L, d], [B, L, H, d], or [B * H, L, d] with the heads of a sample side by side.
        start: Where the image starts.
        length: N, its tokens.
        axis: The axis of L.

    Returns:
        The same with L - N + M rows, the slots in the place of the image.
    """
    image = _merge(plan, rows.narrow(axis, start, length), axis)
    behind = rows.shape[axis] - start - length
    parts = [rows.narrow(axis, 0, start)] if start else []
    parts.append(image)
    if behind:
        parts.append(rows.narrow(axis, start + length, behind))
    return torch.cat(parts, dim=axis) if len(parts) > 1 else image


def _merge(plan: MergePlan, image: torch.Tensor, axis: int) -> torch.Tensor:
    if image.ndim == 4:
        across = image if axis == 1 else image.transpose(1, 2)  # [B, N, H, d]
        merged = plan.merge(across.flatten(2)).unflatten(2, across.shape[2:])
        return merged if axis == 1 else merged.transpose(1, 2)
    samples = plan.assign.shape[0]
    if samples == 1:
        return plan.merge(image)
    return _merge(plan, image.unflatten(0, (samples, -1)), 2).flatten(0, 1)


def kept_slots(plan: MergePlan) -> int:
    """M, the number of slots."""
    return plan.kept


def slot_bias(plan: MergePlan, keys: torch.Tensor, start: int, axis: int) -> torch.Tensor:
    """What proportional attention adds to the logits: log(size) on the key of a slot, 0 on all others.

    A slot of s equal tokens then has the weight that they had together (Bolya et al., ToMe, 2023).

    Args:
        plan: The plan over the image tokens, whose slots are among the keys.
        keys: The keys, text included, as for `reduce_keys`.
        start: Where the slots start among them.
        axis: The axis of the keys' sequence.

    Returns:
        [P, 1, 1, L] in the dtype of `keys`, P being the batch of the plan; with folded heads [1 or B * H, 1, L].
    """
    logs = plan.sizes.to(torch.float32).log().to(keys.dtype)
    bias = F.pad(logs, (start, keys.shape[axis] - start - plan.kept))
    if keys.ndim == 4:
        return bias[:, None, None]
    samples = bias.shape[0]
    return bias[:, None] if samples == 1 else bias.repeat_interleave(keys.shape[0] // samples, dim=0)[:, None]
